"""A small local web page and JSON endpoint for one model: `minitl serve RUN`.

    GET  /            the page: drop a picture, see classes and where the network sees them
    GET  /model       {"model", "classes", "side"}
    POST /predict     a picture as the body, or as the form's file "image"
                      -> {"top": [[class, probability], ...], "picture": data URI, "map": data URI}

A model with several tasks has them in "tasks", by name and as `minitl predict` writes them, in place of "top"
and of "classes"; the map is of what its first task says.

Errors are {"error": text} with a fitting status. By default only this machine can connect; a page of
another site cannot use the browser to reach it, because requests must name the host that is served.
"""

import ipaddress
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minitl.data.decode import ImageError, decode_bytes
from minitl.data.preprocessing import Preprocessing
from minitl.errors import UserError
from minitl.models import Classifier
from minitl.tensor import Tensor, no_grad
from minitl.train.activation_map import activation_maps
from minitl.train.metrics import softmax
from minitl.train.pictures import data_uri, jpeg, overlaid
from minitl.train.task_metrics import answers
from minitl.train.task_predictions import prediction

if TYPE_CHECKING:
    from flask import Flask, Response

MAX_BYTES = 25 << 20  # of an upload
MAX_READ = 4 * MAX_BYTES  # beyond that a body is not even read, and the answer is no longer ours
TOO_LARGE = f"the upload is larger than the limit of {MAX_BYTES >> 20} MB"
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def make_app(model: Classifier, title: str, hosts: tuple[str, ...] | None = LOOPBACK) -> "Flask":
    """Return the WSGI application.

    model: with class names and preprocessing. title: shown on the page. hosts: the names under which
    requests may address this server, whatever the port; None for any.
    """
    try:
        from flask import Flask, jsonify, render_template, request
        from werkzeug.exceptions import HTTPException
    except ImportError:
        raise UserError("minitl serve needs Flask: pip install 'minitl[serve]'") from None

    app = Flask(__name__, template_folder=str(Path(__file__).parent), static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BYTES
    app.config["MAX_FORM_MEMORY_SIZE"] = MAX_BYTES
    predictor = _Predictor(model)

    @app.before_request
    def refuse_other_names() -> Any:
        name = request.host.rpartition(":")[0] or request.host
        if request.host.endswith("]"):
            name = request.host
        if hosts is not None and name.lower() not in map(str.lower, hosts):
            return jsonify(error=f"this server does not answer to the name {name!r}"), 403
        return None

    @app.after_request
    def protect(response: "Response") -> "Response":
        response.headers["Content-Security-Policy"] = (
            "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
            "script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'"
        )
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.errorhandler(HTTPException)
    def explain(error: HTTPException) -> Any:
        text = error.description or error.name
        if error.code == 413:
            text = TOO_LARGE
        return jsonify(error=text), error.code

    @app.get("/")
    def page() -> str:
        return render_template(
            "page.html",
            title=title,
            classes=model.class_names,
            tasks=[t.name for t in model.tasks],
            most=MAX_BYTES,
            too_large=TOO_LARGE,
        )

    @app.get("/model")
    def describe() -> Any:
        if model.tasks:
            tasks = [task.to_dict() for task in model.tasks]
            return jsonify(model=model.arch, tasks=tasks, side=predictor.side)
        return jsonify(model=model.arch, classes=model.class_names, side=predictor.side)

    @app.post("/predict")
    def predict() -> Any:
        # Asking for files reads the body, also where it is a picture that curl calls a form.
        is_form = request.mimetype == "multipart/form-data"
        form = request.files.get("image") if is_form else None
        content = form.read() if form else request.get_data()
        if not content:
            return jsonify(error="send a picture as the body, or as the form's file 'image'"), 400
        try:
            return jsonify(predictor(content, (form and form.filename) or "the upload"))
        except ImageError as error:
            return jsonify(error=f"not a usable picture: {error.reason}"), 415

    return app


class _Predictor:
    """The model behind a lock: kernels use all cores for one picture at a time."""

    def __init__(self, model: Classifier) -> None:
        self._model = model.eval()
        self._preprocessing = Preprocessing.from_dict(model.preprocessing)
        self._lock = threading.Lock()
        self.side = self._preprocessing.crop

    def __call__(self, content: bytes, name: str) -> dict[str, Any]:
        picture = decode_bytes(content, name, min_side=self._preprocessing.resize)
        crop = self._preprocessing.evaluation_crop(picture)
        images = Tensor(self._preprocessing.normalise(crop[None]))
        names, tasks = self._model.class_names, self._model.tasks
        assert names is not None
        with self._lock:
            with no_grad():
                outputs = self._model(images).numpy()
            said = (answers(tasks, outputs) if tasks else softmax(outputs))[0]
            first = said[: tasks[0].outputs] if tasks else said
            best = (-first).argsort(kind="stable")
            heat = activation_maps(self._model, images, np.array(best[:1]))[0]
        top = [[names[i], round(float(said[i]), 6)] for i in best[:5]]
        return {
            **({"tasks": prediction(tasks, said)} if tasks else {"top": top}),
            "picture": data_uri(jpeg(crop), "jpeg"),
            "map": data_uri(jpeg(overlaid(crop, heat)), "jpeg"),
        }


def _address_of(host: str) -> str:
    """Return the address that a name or address stands for; UserError where there is none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(
            f"--host {host} is no address of this machine; give one such as 127.0.0.1, or 0.0.0.0 for all"
        ) from None
    return str(found[0][4][0]).partition("%")[0]


def serve(model: Classifier, title: str, host: str, port: int) -> None:
    """Answer requests until Ctrl-C.

    host: an address or a name of this machine; anything but a loopback address opens the page to the
    network. Raises UserError where address or port cannot be used.
    """
    try:
        from waitress import create_server
    except ImportError:
        raise UserError("minitl serve needs waitress: pip install 'minitl[serve]'") from None

    address = _address_of(host)
    local = ipaddress.ip_address(address).is_loopback
    shown = f"[{host}]" if ":" in host else host
    app = make_app(model, title, (*LOOPBACK, shown) if local else None)
    try:
        server = create_server(
            app, host=address, port=port, threads=4, max_request_body_size=MAX_READ
        )
    except OSError as error:
        raise UserError(
            f"cannot serve on {host}, port {port}: {error.strerror or error}; choose another --port"
        ) from None
    print(f"http://{shown}:{server.effective_port}  (Ctrl-C ends it)", flush=True)
    if not local:
        print("  open to everybody who can reach this machine", flush=True)
    try:
        server.run()
    finally:
        server.close()


__all__ = ["LOOPBACK", "MAX_BYTES", "make_app", "serve"]
