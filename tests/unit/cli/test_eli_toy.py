"""ELI's toy: what drift breaks and aligning mends, each peculiarity of the notebooks, and MNIST's files."""

import gzip
import json
import struct
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from incdet.cli import eli_toy, main
from incdet.cli.eli_toy import ToySettings, accuracy, run_toy
from incdet.data.digits import bundled_digits, mnist_digits
from incdet.errors import DataError

ROOT = Path(__file__).parents[3]
FEW = {"epochs": 2, "iterations": 3, "paired_iterations": 2}
SMALL = {"width": 32, "epochs": 60, "iterations": 40, "paired_iterations": 3, "points": 4}


@pytest.fixture(scope="module")
def digits():
    return bundled_digits()


@pytest.fixture(scope="module")
def result(digits):
    return run_toy(digits, ToySettings(**SMALL), show_progress=False)


def test_drift_breaks_old_digits_and_ridge_mends_most_of_it(result):
    old = result.accuracies
    assert old["before"] > 0.97
    assert result.new_accuracy > 0.9
    assert old["drifted"] < old["before"] - 0.3
    assert old["ridge"] > old["before"] - 0.05
    assert old["energy_paired"] > old["before"] - 0.05
    assert old["drifted"] < old["mean_shift"] < old["ridge"]


def test_the_curve_begins_where_the_drift_left_off(result):
    assert [iteration for iteration, _ in result.curve] == [0, 10, 20, 30, 40]


def test_no_old_image_reaches_an_aligner(digits, result):
    """Other old test images change what is scored, but not where the first ones are moved."""
    fewer = type(digits)(
        "fewer", digits.train_images, digits.train_labels, digits.test_images[:50], digits.test_labels[:50]
    )
    rows = run_toy(fewer, ToySettings(**SMALL), show_progress=False).latents["energy_paired"]
    torch.testing.assert_close(rows, result.latents["energy_paired"][: len(rows)])


def test_momentum_moves_head_1_and_a_fresh_optimizer_does_not(digits):
    def drifted(**settings) -> dict[str, float]:
        return run_toy(digits, ToySettings(**SMALL | settings, average_batches=False), show_progress=False).accuracies

    fresh = {head: drifted(carry_momentum=False, head=head) for head in ("saved", "drifted")}
    assert fresh["saved"] == fresh["drifted"]
    assert drifted(head="drifted") != drifted(head="saved")


def test_head_2_learns_only_when_asked(digits, result):
    trained = run_toy(digits, ToySettings(**SMALL, train_head_2=True), show_progress=False)
    assert not torch.equal(trained.latents["drifted"], result.latents["drifted"])
    assert torch.equal(trained.latents["before"], result.latents["before"])


def test_accuracy_over_batches_and_over_images_worked_by_hand():
    logits = torch.tensor([[1.0, 0.0]]).repeat(129, 1)
    labels = torch.zeros(129, dtype=torch.long)
    labels[-1] = 1  # alone in the second batch
    assert accuracy(logits, labels, average_batches=True) == pytest.approx(0.5)
    assert accuracy(logits, labels, average_batches=False) == pytest.approx(128 / 129)


def test_the_command_writes_pictures_and_figures(digits, tmp_path, capsys):
    options = ["--widths", "8", "16", "--epochs", "2", "--iterations", "3", "--paired-iterations", "2"]
    assert main(["eli-toy", "--out", str(tmp_path), *options]) == 0
    for name in ("accuracy", "latents", "displacement"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "eli_toy.json").read_text())
    assert [entry["settings"]["width"] for entry in written["widths"]] == [8, 16]
    names = {"before", "drifted", "mean_shift", "ridge", "energy", "energy_paired"}
    assert set(written["widths"][0]["old"]) == names
    assert "| ridge |" in capsys.readouterr().out


def test_the_notebook_runs(digits, monkeypatch, capsys):
    shown = []
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(Image=SimpleNamespace, display=shown.append))
    monkeypatch.setattr(
        eli_toy, "run_toy", lambda digits, settings: run_toy(digits, replace(settings, **FEW), show_progress=False)
    )
    cells = json.loads((ROOT / "docs" / "eli_toy.ipynb").read_text())["cells"]
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert len(shown) == 3
    assert all(image.data.startswith(b"\x89PNG") for image in shown)
    assert "| ridge |" in capsys.readouterr().out


def write_mnist(folder, compress: bool) -> None:
    for part, number in (("train", 3), ("t10k", 2)):
        files = {
            f"{part}-images-idx3-ubyte": struct.pack(">4I", 0x803, number, 2, 2) + bytes(range(0, 4 * number)),
            f"{part}-labels-idx1-ubyte": struct.pack(">2I", 0x801, number) + bytes([7, 1, 4][:number]),
        }
        for name, data in files.items():
            (folder / (f"{name}.gz" if compress else name)).write_bytes(gzip.compress(data) if compress else data)


@pytest.mark.parametrize("compress", [False, True])
def test_mnist_files_worked_by_hand(tmp_path, compress):
    write_mnist(tmp_path, compress)
    digits = mnist_digits(tmp_path)
    torch.testing.assert_close(digits.train_images[1] * 255, torch.tensor([4.0, 5.0, 6.0, 7.0]))
    assert digits.test_labels.tolist() == [7, 1]
    second = digits.task(1)
    assert second.train_labels.tolist() == [2]
    assert second.train_images.shape == (1, 4)


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("train-images-idx3-ubyte", None, "has no train-images-idx3-ubyte or"),
        ("t10k-images-idx3-ubyte", lambda data: data[:-1], "cut short"),
        ("t10k-images-idx3-ubyte", lambda data: b"", "cut short"),
        ("train-labels-idx1-ubyte", lambda data: b"\0\0\x08\x03" + data[4:], "another file"),
        ("train-labels-idx1-ubyte", lambda data: struct.pack(">2I", 0x801, 1) + b"\1", "3 images but 1 labels"),
    ],
)
def test_files_that_are_not_mnists_are_refused(tmp_path, name, change, complaint):
    write_mnist(tmp_path, compress=False)
    path = tmp_path / name
    if change:
        path.write_bytes(change(path.read_bytes()))
    else:
        path.unlink()
    with pytest.raises(DataError, match=complaint):
        mnist_digits(tmp_path)


def test_a_damaged_archive_is_refused(tmp_path):
    write_mnist(tmp_path, compress=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="cannot be read"):
        mnist_digits(tmp_path)


def test_widths_that_are_not_positive_are_refused(tmp_path, capsys):
    assert main(["eli-toy", "--out", str(tmp_path), "--widths", "0"]) == 2
    assert "positive" in capsys.readouterr().err
