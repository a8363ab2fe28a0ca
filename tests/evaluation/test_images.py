"""Classifiers of images: a ViT that tells real digits is pruned, proved and measured."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F  # noqa: N812 - the name it is known by
from transformers import PreTrainedModel

import digits
import secateur
from secateur.blocks.full_gradients import UpAndDown, full_gradients
from secateur.blocks.stream import Stream
from secateur.checkpoint import ResidentModel, find_matrices
from secateur.checkpoint.gradient_store import GradientFile
from secateur.cli.commands import app
from secateur.data import ImageProtocol, images_in_memory, load_images
from secateur.data.pixels import load_processor, read_pixels
from secateur.errors import DataError, ModelError, RecipeError, SecateurError
from secateur.record import read_record
from secateur.record.check import check_folder
from secateur.reporting import side_by_side
from secateur.reporting.reproduce import facts_of
from tiny import Command

FAMILIES = ["ViT", "DeiT", "Beit", "Dinov2", "ViTMSN"]
TRAINED_ON = slice(0, 1797 - digits.HELD_OUT)


@pytest.fixture(scope="session")
def vit() -> PreTrainedModel:
    """A ViT that has learnt. Not to be changed."""
    return digits.train()


@pytest.fixture(scope="session")
def vit_folder(vit: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits.save(vit, tmp_path_factory.mktemp("vision") / "vit")


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 digits that the model was trained on, in class folders."""
    return digits.write_images(tmp_path_factory.mktemp("vision") / "train", slice(0, 160))


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits that it was not trained on."""
    rows = slice(-digits.HELD_OUT, None)
    return digits.write_images(tmp_path_factory.mktemp("vision") / "test", rows)


def resident(model: PreTrainedModel) -> ResidentModel:
    return ResidentModel(model, torch.device("cpu"), torch.float32)


def some_pixels(count: int, start: int = 0) -> torch.Tensor:
    return digits.pixel_values(digits.images()[0][start : start + count])


def test_top1_is_that_of_the_model(vit: PreTrainedModel, vit_folder: Path, held_out: Path) -> None:
    grey, labels = digits.images()
    pixels, labels = digits.pixel_values(grey[-digits.HELD_OUT :]), labels[-digits.HELD_OUT :]
    with torch.no_grad():
        expected = (vit(pixel_values=pixels).logits.argmax(-1) == labels).double().mean()
    found = secateur.evaluate(vit_folder, images=held_out)
    assert found.top1 == pytest.approx(float(expected))
    assert found.top1 > 0.85
    assert found.standard_error == pytest.approx((expected * (1 - expected) / 597) ** 0.5)
    assert (found.protocol.images, found.protocol.labelled) == (597, True)
    assert found.agreement is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_block_by_block_equals_the_model(family: str, batch_size: int) -> None:
    model, pixels = digits.random_model(family), some_pixels(5)
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits
    source = resident(model)
    stream = Stream(source, pixels, batch_size)
    for index in range(len(source.blocks)):
        with source.open_block(index) as block:
            stream.advance(block, index)
    with source.open_surroundings() as opened:
        found = [stream.logits(opened, batch, slice(None)) for batch in stream.batches]
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["ViT", "DeiT"])
@pytest.mark.parametrize("labelled", [True, False])
def test_full_gradients_are_those_of_the_loss(family: str, labelled: bool, tmp_path: Path) -> None:
    model, pixels = digits.random_model(family), some_pixels(5)
    labels = torch.tensor([7, 1, 2, 3, 9])  # of no digit in particular
    source = resident(model)
    stream = Stream(source, pixels, 2, labels if labelled else None)
    path = tmp_path / "gradients.safetensors"
    with GradientFile.create(path, {}, one_file=True) as file:
        full_gradients(source, stream, file, "l2", UpAndDown(tmp_path, "memory"))
    model.requires_grad_(True)
    squares: dict[str, torch.Tensor] = {}
    for image, label in zip(pixels, labels, strict=True):
        model.zero_grad()
        logits = model(pixel_values=image[None]).logits
        F.cross_entropy(logits, label[None] if labelled else logits.argmax(-1)).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            squares[name] = squares.get(name, torch.zeros(())) + parameter.grad.square()
    for index, block in enumerate(source.blocks.modules):
        for matrix in find_matrices(block):
            name = source.blocks.prefix(index) + matrix.name
            found = GradientFile(path).read(name)
            torch.testing.assert_close(found, squares[name].sqrt(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("pattern", ["50%", "2:4"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "gblm", "wanda++"])
def test_a_vit_is_pruned_and_proved(
    vit_folder: Path, calibration: Path, held_out: Path, tmp_path: Path, method: str, pattern: str
) -> None:
    out = tmp_path / "pruned"
    record = secateur.prune(
        vit_folder, method=method, pattern=pattern, out=out, images=str(calibration), samples=64
    )
    assert record.sparsity == 0.5
    assert check_folder(str(out), None).complaint is None
    kept = (out / "preprocessor_config.json").read_bytes()
    assert kept == (vit_folder / "preprocessor_config.json").read_bytes()
    found = secateur.evaluate(out, images=held_out, against=vit_folder)
    assert found.top1 is not None
    assert found.dense_top1 is not None
    assert found.agreement is not None
    least = {"magnitude": 0.2}.get(method, 0.5)  # chance is 0.1
    assert least < found.top1 <= 1
    assert least < found.agreement < 1
    assert found.dense_top1 > 0.85


def test_the_record_says_which_images(vit_folder: Path, calibration: Path, tmp_path: Path) -> None:
    def run(name: str, seed: int) -> ImageProtocol:
        out = tmp_path / name
        secateur.prune(
            vit_folder, method="wanda", out=out, images=str(calibration), samples=64, seed=seed
        )
        record = read_record(out)
        assert record is not None
        assert record.recipe["images"] == str(calibration)
        (comparison,) = side_by_side([record])
        assert dict(facts_of(comparison))["calibration"] == f"{calibration}: 64 images"
        assert isinstance(record.calibration, ImageProtocol)
        return record.calibration

    first, again, other = run("a", 0), run("b", 0), run("c", 1)
    assert (first.images, first.found, first.labelled, first.seed) == (64, 160, True, 0)
    assert (first.channels, first.height, first.width) == (3, digits.SIZE, digits.SIZE)
    assert first == again
    assert first.sha256 != other.sha256


def test_images_without_class_folders_take_the_models_own_predictions(
    vit_folder: Path, tmp_path: Path
) -> None:
    plain = digits.write_images(tmp_path / "plain", slice(0, 40), in_classes=False)
    out = tmp_path / "pruned"
    record = secateur.prune(vit_folder, method="gblm", out=out, images=str(plain), samples=32)
    assert isinstance(record.calibration, ImageProtocol)
    assert not record.calibration.labelled
    found = secateur.evaluate(out, images=plain, against=vit_folder)
    assert found.top1 is None
    assert found.agreement is not None
    with pytest.raises(DataError, match="the images have no labels"):
        secateur.evaluate(out, images=plain)


def test_pixel_values_in_memory_give_what_their_files_give(
    vit: PreTrainedModel, vit_folder: Path, tmp_path: Path
) -> None:
    plain = digits.write_images(tmp_path / "plain", slice(0, 32), in_classes=False)
    out = tmp_path / "pruned"
    secateur.prune(vit_folder, method="wanda", out=out, images=str(plain), samples=32)
    model = type(vit).from_pretrained(vit_folder)
    model.eval()
    drawn = load_images(str(plain), vit_folder, vit.config, 32, seed=0).pixel_values
    record = secateur.prune(model, method="wanda", calibration=drawn)
    assert record.calibration is not None
    for name, weight in type(vit).from_pretrained(out).state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_an_interrupted_run_goes_on(
    vit_folder: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prune(name: str) -> Path:
        out = tmp_path / name
        secateur.prune(vit_folder, method="gblm", out=out, images=str(calibration), samples=32)
        return out

    whole = prune("whole")
    with monkeypatch.context() as patched:
        patched.setattr("secateur.checkpoint.OutputFolder.write_rest", _stop)
        with pytest.raises(KeyboardInterrupt):
            prune("halved")
    assert (tmp_path / ".halved.partial" / "state").is_dir()
    halved = prune("halved")
    for file in whole.glob("*.safetensors"):
        assert file.read_bytes() == (halved / file.name).read_bytes()


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("labels", "folders", "numbers"),
    [
        (None, ["0", "2", "10"], [0, 10, 2]),  # of LABEL_0, LABEL_1, ... by number
        (None, ["LABEL_3", "LABEL_1"], [1, 3]),
        (["wren", "otter", "stoat"], ["stoat", "otter"], [1, 2]),
        (["LABEL_0", "LABEL_1"], ["wren", "otter"], [0, 1]),
    ],
)
def test_a_class_folder_is_the_class_of_its_name(
    vit: PreTrainedModel, vit_folder: Path, tmp_path: Path,
    labels: list[str] | None, folders: list[str], numbers: list[int],
) -> None:  # fmt: skip
    names = labels or [f"LABEL_{number}" for number in range(12)]
    config = type(vit.config)(**vit.config.to_dict() | {
        "id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}
    })  # fmt: skip
    one = next(digits.write_images(tmp_path / "one", slice(0, 1)).rglob("*.png"))
    for folder in folders:
        (tmp_path / "in" / folder).mkdir(parents=True)
        shutil.copy(one, tmp_path / "in" / folder / "a.png")
    found = load_images(str(tmp_path / "in"), vit_folder, config, None, 0)
    assert found.labels is not None
    assert found.labels.tolist() == numbers


def _damaged(folder: Path) -> None:
    path = next(folder.rglob("*.png"))
    path.write_bytes(path.read_bytes()[:60])


def _postscript(folder: Path) -> None:
    next(folder.rglob("*.png")).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")


def _huge(folder: Path) -> None:
    Image.new("L", (9000, 9000)).save(next(folder.rglob("*.png")))


def _narrow(folder: Path) -> None:
    Image.new("L", (6_000_000, 1)).save(next(folder.rglob("*.png")), format="PPM")


def _beside(folder: Path) -> None:
    shutil.copy(next(folder.rglob("*.png")), folder / "loose.png")


def _strange(folder: Path) -> None:
    shutil.copytree(folder / "3", folder / "LABEL_33")


def _empty(folder: Path) -> None:
    for path in list(folder.rglob("*.png")):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_empty, "no images in"),
        (shutil.rmtree, "there is no folder"),
        (_damaged, "a damaged image"),
        (_postscript, "wanted one of BMP"),
        (_huge, "81000000 pixels in .*; wanted at most 64000000"),
        (_beside, "images lie beside the class folder"),
        (_strange, "is no label of the model"),
    ],
)
def test_bad_images_cost_one_line_and_leave_nothing(
    vit_folder: Path, tmp_path: Path, spoil: Callable[[Path], None], complaint: str
) -> None:
    folder = digits.write_images(tmp_path / "images", slice(0, 30))
    spoil(folder)
    with pytest.raises(DataError, match=complaint) as caught:
        secateur.prune(vit_folder, method="wanda", out=tmp_path / "out", images=str(folder))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*out*"))


def test_images_need_pillow(
    vit_folder: Path, calibration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(
        DataError, match=r"images need Pillow; try pip install 'secateur\[vision\]'"
    ):
        secateur.evaluate(vit_folder, images=calibration)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"size": {"height": 10**9, "width": 8}}, "1000000000 as height of size"),
        ({"crop_size": {"height": 8, "width": 5000}, "do_center_crop": True}, "as width of crop"),
        ({"size": "large"}, "no image processor that can be read"),
        ({"image_mean": [0.5, 0.5]}, "the model's image processor fails"),
    ],
)
def test_a_processor_that_cannot_work_costs_one_line(
    vit_folder: Path, calibration: Path, tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    model = shutil.copytree(vit_folder, tmp_path / "vit")
    path = model / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(DataError, match=complaint):
        secateur.prune(model, method="wanda", images=str(calibration), out=tmp_path / "out")


def test_a_narrow_image_is_not_resized_to_a_huge_one(vit_folder: Path, tmp_path: Path) -> None:
    processor = load_processor(vit_folder)
    processor.size = {"shortest_edge": 224}
    _narrow(digits.write_images(tmp_path / "images", slice(0, 1)))
    with pytest.raises(DataError, match="pixels once it is resized"):
        read_pixels(next((tmp_path / "images").rglob("*.png")), processor, "L")


def test_images_need_a_processor(vit: PreTrainedModel, calibration: Path, tmp_path: Path) -> None:
    vit.save_pretrained(tmp_path / "bare")
    with pytest.raises(DataError, match=r"wanted its preprocessor_config\.json"):
        secateur.evaluate(tmp_path / "bare", images=calibration)


@pytest.mark.parametrize(
    ("pixels", "complaint"),
    [
        (torch.zeros(2, 3, 8, 8), r"image 0 is \[3, 8, 8\]"),
        (torch.zeros(0, 3, 16, 16), "not empty"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.int64), "wanted pixel values"),
        (torch.full((1, 3, 16, 16), float("nan")), "not finite"),
    ],
)
def test_pixels_that_do_not_fit_are_refused(
    vit: PreTrainedModel, pixels: torch.Tensor, complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint):
        images_in_memory(pixels, vit.config)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"calibration": "builtin"}, "ViTForImageClassification reads images, not text"),
        ({"images": "x", "text": "builtin"}, "ViTForImageClassification reads images, not text"),
        ({"images": "x", "calibration": "builtin"}, "leave calibration or images out"),
        ({}, "needs calibration"),
    ],
)
def test_a_classifier_takes_no_text(
    vit_folder: Path, tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(RecipeError, match=complaint):
        secateur.prune(vit_folder, out=tmp_path / "out", **options)


def test_a_language_model_takes_no_images(
    llama_folder: Path, calibration: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="LlamaForCausalLM reads text, not images"):
        secateur.prune(llama_folder, out=tmp_path / "out", images=str(calibration))
    with pytest.raises(RecipeError, match="LlamaForCausalLM reads text, not images"):
        secateur.evaluate(llama_folder, images=calibration)


def test_classifiers_are_compared(
    vit_folder: Path, calibration: Path, tmp_path: Path, command: Command
) -> None:
    done = secateur.compare(
        vit_folder, out=tmp_path, methods="magnitude,wanda", images=calibration, samples=16
    )
    assert [record.sparsity for record in done.records] == [0.5, 0.5]
    table = done.tables[0].read_text()
    assert "| 2:4 | magnitude |" in table
    assert "| 2:4 | wanda |" in table
    assert "16 images" in done.report.read_text()


def test_a_classifier_has_no_perplexity(vit_folder: Path) -> None:
    with pytest.raises(ModelError, match="reads images; wanted a language model"):
        secateur.evaluate(vit_folder, text="builtin")


def test_a_model_that_shrinks_its_images_is_refused(calibration: Path, tmp_path: Path) -> None:
    shape = {"patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_attention_heads": [2, 2]}
    swin = digits.random_model("Swin", **shape, window_size=4)
    folder = digits.save(swin, tmp_path / "swin")
    with pytest.raises(ModelError, match="cannot be run one by one"):
        secateur.prune(folder, method="wanda", out=tmp_path / "out", images=str(calibration))


def test_the_command(
    vit_folder: Path, calibration: Path, held_out: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    options = ("--images", calibration, "--samples", 32, "--method", "gblm", "--out", out)
    plan = command("prune", vit_folder, *options, "--dry-run")
    assert "32 of 160 images of 16 x 16" in plan.out
    assert "written to" in command("prune", vit_folder, *options).out
    assert "holds" in command("check", out).out
    status, said, err = command(
        "evaluate", out, "--images", held_out, "--against", vit_folder, "--limit", 50
    )
    assert status == 0, err
    assert [line.split()[0] for line in said.splitlines()] == [
        "top-1", "dense", "agreement", "protocol",
    ]  # fmt: skip
    assert "50 of 597 images" in said
    with pytest.raises(SecateurError, match="leave one out"):
        app(
            ["evaluate", str(out), "--images", str(held_out), "--text", "builtin"],
            standalone_mode=False,
        )
