"""Fine-tuning as PyTorch's users write it: the rival of `python -m benchmarks finetune`.

    python -m benchmarks.torch_finetune DATA --start start.pt [--frozen] --epochs 3 --out result.json

It follows the usual recipe of transfer learning: pictures of DATA/{train,val}/<class>/* through a DataLoader
with workers, SGD with momentum 0.9, the learning rate divided by ten every 7 epochs, validation after each
epoch, the best weights kept. With --frozen the backbone is fixed, statistics included, and pictures are not
varied; it runs in each epoch all the same. Dataset, transforms and network stand in for torchvision's.
"""

import argparse
import copy
import json
import math
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks import rivals

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
RESIZE, CROP = 256, 224
SCALE, RATIO = (0.35, 1.0), (3 / 4, 4 / 3)  # of random crops, as minitl's


class ImageFolder(Dataset[tuple[torch.Tensor, int]]):
    """The pictures of ROOT/<class>/*."""

    def __init__(self, root: Path, augment: bool) -> None:
        self.classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
        self.samples = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((root / name).rglob("*"))
            if path.is_file()
        ]
        self.augment = augment

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return a picture (3, CROP, CROP) and its label."""
        path, label = self.samples[index]
        with Image.open(path) as file:
            image = file.convert("RGB")
        image = random_crop(image) if self.augment else center_crop(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return (pixels.float() / 255 - MEAN) / STD, label


def random_crop(image: Image.Image) -> Image.Image:
    """RandomResizedCrop and RandomHorizontalFlip."""
    width, height = image.size
    for _ in range(10):
        area = width * height * random.uniform(*SCALE)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            break
    else:
        w = h = min(width, height)
        left, top = (width - w) // 2, (height - h) // 2
    image = image.crop((left, top, left + w, top + h))
    image = image.resize((CROP, CROP), Image.Resampling.BILINEAR)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


def center_crop(image: Image.Image) -> Image.Image:
    """Resize and CenterCrop."""
    width, height = image.size
    short = min(width, height)
    size = int(RESIZE * width / short), int(RESIZE * height / short)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - CROP) / 2), round((size[1] - CROP) / 2)
    return image.crop((left, top, left + CROP, top + CROP))


def seed_worker(number: int) -> None:
    """Give each worker a random stream of its own."""
    random.seed(torch.initial_seed() + number)


@torch.no_grad()
def accuracy(
    model: nn.Module, batches: DataLoader[tuple[torch.Tensor, int]], layout: torch.memory_format
) -> float:
    """Return the share of pictures that the model gets right."""
    model.eval()
    right = seen = 0
    for x, labels in batches:
        right += int((model(x.to(memory_format=layout)).argmax(1) == labels).sum())
        seen += len(labels)
    return right / seen


def main() -> None:
    """Fine-tune, and write the validation accuracy of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--start", type=Path, required=True, help="state dict with the new head")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--frozen", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    train = ImageFolder(options.data / "train", augment=not options.frozen)
    val = ImageFolder(options.data / "val", augment=False)
    usual = {"num_workers": options.workers, "worker_init_fn": seed_worker}
    usual |= {"persistent_workers": options.workers > 0}
    train_batches = DataLoader(train, options.batch_size, shuffle=True, **usual)
    val_batches = DataLoader(val, 32, **usual)

    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    model: nn.Module = rivals.ResNet(*rivals.NETWORKS[options.arch], classes=len(train.classes))
    model.load_state_dict(torch.load(options.start))
    model = model.to(memory_format=layout)  # type: ignore[call-overload]
    if options.frozen:
        model.requires_grad_(False)
        model.fc.requires_grad_(True)
    loss_of = nn.CrossEntropyLoss()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=options.lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)

    history = []
    best, best_state = -1.0, model.state_dict()
    for epoch in range(options.epochs):
        model.train(not options.frozen)  # frozen layers keep their statistics
        for x, labels in train_batches:
            optimizer.zero_grad()
            loss = loss_of(model(x.to(memory_format=layout)), labels)
            loss.backward()
            optimizer.step()
        schedule.step()
        history.append(accuracy(model, val_batches, layout))
        print(
            f"epoch {epoch + 1}/{options.epochs}: validation accuracy {history[-1]:.3f}", flush=True
        )
        if history[-1] > best:
            best, best_state = history[-1], copy.deepcopy(model.state_dict())
    torch.save(best_state, options.out.with_suffix(".pt"))
    options.out.write_text(
        json.dumps({"val_accuracy": history, "pictures": [len(train), len(val)]})
    )


if __name__ == "__main__":
    main()
