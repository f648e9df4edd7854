"""Models are made once, again when damaged, and by one of two processes at once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from backends.models.cache import made_once


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECHEAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_embedded_model_is_made_once_and_again_when_damaged(cache: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "model.safetensors").write_text("weights")

    folder = made_once("model", make)
    assert made_once("model", make) == folder == cache / "model"
    assert len(made) == 1

    (folder / "model.safetensors").write_text("damaged")
    made_once("model", make)
    assert len(made) == 2
    assert (folder / "model.safetensors").read_text() == "weights"
    assert [path.name for path in cache.iterdir()] == ["model"]


def test_a_model_whose_making_fails_leaves_no_folder(cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        made_once("model", fail)
    assert list(cache.iterdir()) == []


def test_two_makers_at_once_end_with_one_intact_folder(cache: Path) -> None:
    both_are_making = threading.Barrier(2)
    folders = []

    def make(folder: Path) -> None:
        both_are_making.wait(timeout=10)
        (folder / "model.safetensors").write_text("weights")

    makers = [threading.Thread(target=lambda: folders.append(made_once("model", make))) for _ in range(2)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert folders == [cache / "model"] * 2
    assert made_once("model", lambda folder: pytest.fail("it is there already")) == cache / "model"
    assert [path.name for path in cache.iterdir()] == ["model"]
