"""Several tasks from a table: what it says, who trains on what, and one line for what is wrong."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitl.data.dataset import load_split
from minitl.data.doctor import quick_findings
from minitl.data.targets import from_lists, to_lists
from minitl.data.task_table import task_dataset, task_dataset_for
from minitl.errors import UserError
from minitl.tasks import Task, from_dicts, output_names, parse

WANTED = parse(["kind=classes", "tags=labels", "age=number"], ["age=0.5"])
LINES = [
    "path,part,kind,tags,age",
    "0.png,train,cat,striped|young,1",
    "1.png,train,dog,-,3",
    "2.png,train,,young,5.0",
    "3.png,val,cat,,",
    "4.png,val,dog,striped,-2e1",
    "5.png,test,,,7",
    "6.png,train,,,",
]
NAN = np.nan


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(7):
        (folder / f"{number}.png").write_bytes(bytes([number]) * (9 if number < 2 else 10 + number))
    return folder


def write(data, lines):
    table = data.parent / "t.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def read(data, lines, wanted=WANTED, **options):
    return task_dataset(data, write(data, lines), wanted, **options)


def test_a_table_is_read(data):
    dataset = read(data, LINES)
    kind, tags, age = dataset.tasks
    assert (kind.classes, tags.classes) == (("cat", "dog"), ("striped", "young"))
    assert (age.mean, age.std, age.weight) == (3, np.std([1, 3, 5]), 0.5)  # of training alone
    assert dataset.classes == ["kind: cat", "kind: dog", "tags: striped", "tags: young", "age"]
    rows = {s.path: dataset.targets[s.label].tolist() for s in dataset.train + dataset.val}
    np.testing.assert_equal(
        rows,
        {
            "0.png": [0, 1, 1, 1],
            "1.png": [1, 0, 0, 3],  # - is known: none of them
            "2.png": [NAN, 0, 1, 5],
            "3.png": [0, NAN, NAN, NAN],  # empty is not known
            "4.png": [1, 1, 0, -20],
        },
    )
    assert [s.path for s in dataset.test] == ["5.png"]
    assert dataset.counts("train") == [1, 1, 1, 2, 3]
    assert dataset.label_of(dataset.train[0]) == "kind cat; tags striped|young; age 1"
    assert dataset.label_of(dataset.train[1]) == "kind dog; tags -; age 3"
    assert dataset.notes == ["left out 1 pictures of which nothing is known (6.png)"]
    assert dataset.seed is None


def test_usual_names_are_for_path_and_part_alone(data):
    lines = ["file,split,class", *(f"{n}.png,training,{'ab'[n % 2]}" for n in range(6))]
    dataset = read(data, lines, parse(["class=classes"]))
    header, drawn = dataset.notes
    assert "path from its column file, part from its column split" in header
    assert drawn == "no picture is said to be val: drawn out of those of train (seed 0)"
    assert len(dataset.val) == 2
    with pytest.raises(UserError, match="no column label"):
        read(data, lines, parse(["label=classes"]))


def test_one_task_of_labels_alone(data):
    dataset = read(data, LINES, parse(["tags=labels"]))
    assert dataset.classes == ["tags: striped", "tags: young"]
    assert len(dataset.train) == 3 and len(dataset.val) == 1 and not dataset.test


def test_a_split_comes_back(data, tmp_path):
    dataset = read(data, LINES)
    dataset.save_split(tmp_path / "split.json")
    back = load_split(tmp_path / "split.json", data)
    assert (back.tasks, back.classes, back.notes) == (dataset.tasks, dataset.classes, dataset.notes)
    for part in ("train", "val", "test"):
        ours, theirs = (
            [(s.path, d.label_of(s)) for s in getattr(d, part)] for d in (dataset, back)
        )
        assert ours == theirs


@pytest.mark.parametrize(
    "change, word",
    [
        (
            lambda c: c["train"].update({"0.png": [0, 1, 1]}),
            r"row of targets of '0.png'.*\[0, 1, 1\]",
        ),
        (
            lambda c: c["train"].update({"0.png": [2, 1, 1, 1]}),
            "2, .*'0.png', is out of range.*'kind'",
        ),
        (
            lambda c: c["train"].update({"0.png": [0, 1, None, 1]}),
            r"\[1, None\].*'0.png'.*'tags'.*in part",
        ),
        (lambda c: c["train"].update({"0.png": [0, 0.5, 1, 1]}), "0.5, .*'0.png', is out of range"),
        (
            lambda c: c["train"].update({"0.png": [0, 1, 1, math.inf]}),
            "inf, .*'0.png', .*'age'.*finite",
        ),
        (lambda c: c["train"].update({"0.png": [None] * 4}), "nothing is known of '0.png'"),
        (lambda c: c["train"].update({"0.png": ["a"] * 4}), "row of targets.*'a', 'a'"),
        (lambda c: c.update(val=[]), "'val'"),
        (lambda c: c["tasks"][0].update(kind="x"), "kinds.*'kind' and 'x'"),
        (lambda c: c["tasks"][2].update(std=0), "std"),
        (lambda c: c["tasks"].append(c["tasks"][0]), "same name"),
        (lambda c: c["train"].update({"../x.png": [0, 1, 1, 1]}), "not a path inside"),
    ],
)
def test_a_damaged_split_is_refused(data, tmp_path, change, word):
    path = tmp_path / "split.json"
    read(data, LINES).save_split(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=word):
        load_split(path, data)


@pytest.mark.parametrize(
    "line, cells, words",
    [
        (1, "0.png,train,cat,striped,3 years", ("line 2, column age", "'3 years' is no number")),
        (1, "0.png,train,cat,striped,nan", ("line 2, column age", "no number")),
        (1, '0.png,train,cat,striped,"3,5"', ("line 2, column age", "a point, not a comma")),
        (1, "0.png,train,cat,striped||young,1", ("line 2, column tags", "without a name")),
        (1, "0.png,train,cat,striped|-,1", ("line 2, column tags", "without a name")),
        (1, "0.png,train,cat,young|young,1", ("line 2, column tags", "twice")),
        (4, "3.png,val,cow,,", ("line 5, column kind", "no training picture has 'cow'")),
        (5, "4.png,val,dog,striped|wet,1", ("line 6, column tags", "'wet'")),
        (2, "0.png,train,dog,-,3", ("line 3", "0.png is there already", "line 2")),
        (2, "9.png,train,dog,-,3", ("line 3", "no picture '9.png'")),
        (0, "path,part,kind,tags", ("line 1", "no column age", "path,part,kind,tags,age")),
        (0, "path,part,kind,tags,Age,AGE", ("line 1", "age is there twice")),
    ],
)
def test_one_line_says_where_a_table_is_wrong(data, line, cells, words):
    lines = [*LINES[:line], cells, *LINES[line + 1 :]]
    with pytest.raises(UserError) as error:
        read(data, lines)
    for word in (str(data.parent / "t.csv"), *words):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "lines, words",
    [
        (
            [LINES[0], "0.png,train,cat,-,1", "1.png,val,cat,a,2"],
            "column kind: 1 different classes",
        ),
        ([LINES[0], "0.png,train,a,-,1", "1.png,val,b,-,2"], "column tags: 0 different labels"),
        ([LINES[0], "0.png,train,a,x,", "1.png,val,b,x,"], "column age: nothing is filled in"),
        (
            [LINES[0], "0.png,train,a,x,4", "1.png,train,b,x,4", "2.png,val,b,x,5"],
            "column age: .*all the same",
        ),
        (
            [LINES[0], "0.png,train,a,x,4", "1.png,train,b,x,5", "2.png,val,b,x,"],
            "column age: nothing is known of any validation picture",
        ),
        ([LINES[0], "0.png,train,,,"], "says nothing in the columns kind, tags, age"),
        ([LINES[0]], "nothing below its header"),
    ],
)
def test_what_cannot_be_learned_is_refused(data, lines, words):
    with pytest.raises(UserError, match=words):
        read(data, lines)


@given(st.integers(0, 20), st.integers(0, 2))
def test_every_class_and_label_has_a_picture_to_learn_from(tmp_path_factory, seed, test_fifths):
    """However the parts are drawn, and in shares of the first task's classes."""
    data = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(seed)
    lines = ["path,kind,tags,age"]
    for number in range(60):
        (data / f"{number}.png").touch()
        tag = f"t{number // 20}{'|rare' if number == 8 else ''}" if number % 2 == 0 else ""
        lines.append(f"{number}.png,{'ab'[number % 2]},{tag},{random.integers(9)}")
    draw = {"val_fraction": 0.4, "test_fraction": test_fifths / 5, "seed": seed}
    dataset = read(data, lines, **draw)
    assert min(dataset.counts("train")) >= 1
    parts = [{s.path for s in part} for part in (dataset.train, dataset.val, dataset.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 60
    assert len(parts[2]) in (12 * test_fifths, 12 * test_fifths - 1)
    assert len(parts[1]) in (24, 23) and parts[1]
    again = read(data, [lines[0], *lines[:0:-1]], **draw)
    assert [{s.path for s in part} for part in (again.train, again.val, again.test)] == parts


def test_a_model_is_judged_by_its_own_classes(data):
    tasks = read(data, LINES).tasks
    dataset = task_dataset_for(data, write(data, LINES[:1] + LINES[4:]), tasks)
    assert [s.path for s in dataset.val] == ["3.png", "4.png"] and len(dataset.test) == 1
    assert dataset.tasks == tasks  # the mean of training, not of these
    with pytest.raises(
        UserError, match="line 2, column kind: the model knows no 'cow', only cat, dog"
    ):
        task_dataset_for(data, write(data, [LINES[0], "0.png,,cow,,"]), tasks)


def test_copies_under_other_labels_are_found_where_they_contradict(data):
    for number in range(7):
        (data / f"{number}.png").write_bytes(bytes(20) if number < 3 else bytes([number]))
    found = {f.kind: f for f in quick_findings(read(data, LINES))}
    assert (
        "labelled kind cat; tags striped|young; age 1 and kind dog"
        in found["label-conflict"].message
    )
    lines = [LINES[0], "0.png,train,cat,young,1", "1.png,train,,young,1", *LINES[4:6]]
    lines += ["2.png,train,dog,striped,3"]
    (data / "2.png").write_bytes(b"another")
    kinds = {f.kind for f in quick_findings(read(data, lines))}
    assert "label-conflict" not in kinds and "duplicate" in kinds


@pytest.mark.parametrize(
    "tasks, weights, word",
    [
        (["kind"], [], "'kind'"),
        (["=classes"], [], "'=classes'"),
        (["kind=class"], [], "'kind=class'"),
        (["part=classes"], [], "column part"),
        (["image=classes"], [], "column image"),
        (["kind=classes", "Kind=labels"], [], "already"),
        (["kind=classes"], ["age=2"], "'age=2'"),
        (["kind=classes"], ["kind=0"], "positive"),
        (["kind=classes"], ["kind=x"], "positive"),
    ],
)
def test_tasks_that_are_none(tasks, weights, word):
    with pytest.raises(UserError, match=word):
        parse(tasks, weights)


def test_a_column_may_have_an_equals_sign():
    assert parse(["a=b=number"])[0][:2] == ("a=b", "number")


@pytest.mark.parametrize(
    "described, words",
    [(None, "not None"), ([], "not 0"), ({}, "not {}"), ([1], "not by 1"),
     ([{"name": "a"}], "not by {'name': 'a'}"),
     ([{"name": "a", "kind": "classes", "classes": ["x"]}], "'a'.* 1 names; .*at least 2"),
     ([{"name": "a", "kind": "classes", "classes": ["x", "x"]}], "'a' has 'x' more than once"),
     ([{"name": "a", "kind": "labels", "classes": [1]}], "'a' has 1 among its labels"),
     ([{"name": "a", "kind": "labels", "classes": "ab"}], "'a' must be a list of names, not 'ab'"),
     ([{"name": "a", "kind": "number", "mean": float("nan")}], "'a' cannot have the mean nan"),
     ([{"name": "a", "kind": "number", "mean": 10**400}], "'a' cannot have the mean 1000"),
     ([{"name": "a", "kind": "number", "std": True}], "'a' cannot have the std True"),
     ([{"name": "a", "kind": "number", "classes": ["x"]}], "'a'.* 1 names; .*none"),
     ([{"name": "a", "kind": "number", "x": 1}], "'x': 1"),
     ([{"name": "", "kind": "number"}], "got '' and 'number'"),
     ([{"name": 1, "kind": "number"}], "got 1 and 'number'"),
     ([{"name": "a", "kind": []}], r"got 'a' and \[\]"),
     ([{"name": "a", "kind": "number"}] * 2, "2 tasks have the same name, 'a'"),
     ([{"name": "a", "kind": "labels", "classes": [str(n) for n in range(70_000)]}], "70,000 outputs")],
)  # fmt: skip
def test_descriptions_in_files_are_checked(described, words):
    with pytest.raises(ValueError, match=words):
        from_dicts(described)


def test_descriptions_come_back():
    tasks = (Task("a", "classes", ("x", "y"), weight=2.0), Task("b", "number", mean=1.0, std=3.0))
    assert from_dicts(json.loads(json.dumps([task.to_dict() for task in tasks]))) == tasks
    assert output_names(tasks) == ["a: x", "a: y", "b"]
    targets = np.array([[0, NAN], [NAN, 1.5]])
    np.testing.assert_equal(
        from_lists(tasks, json.loads(json.dumps(to_lists(targets))), ["p", "q"]), targets
    )


@pytest.mark.parametrize("sign, shown", [(1, "inf"), (-1, "-inf")])
def test_targets_beyond_float64_are_out_of_range(sign, shown):
    value = sign * 10**400
    tasks = (Task("a", "classes", ("x", "y")), Task("b", "number"))
    for row in ([value, None], [0, value]):
        with pytest.raises(ValueError, match=rf"{shown}, a target of 'q', is out of range"):
            from_lists(tasks, [[0, 1], row], ["p", "q"])
