"""The feature store: what it keeps, what it lets go, and how it comes back."""

import pytest
import torch
from tiny import FIRST, World, tiny_config

from incdet.errors import CheckpointError
from incdet.replay.features import FeatureStore
from incdet.replay.memory import memory_size
from incdet.structures import RegionOutputs


def regions(labels: list[int], images: list[int] | None = None, first: float = 0.0) -> RegionOutputs:
    """One region per label of three classes; region i is full of ``first + i``."""
    values = first + torch.arange(len(labels), dtype=torch.float32)
    four = values[:, None].repeat(1, 4)
    logits = torch.zeros(len(labels), 4)
    index = torch.tensor(images or list(range(len(labels))))
    pooled = values.view(-1, 1, 1, 1).repeat(1, 2, 3, 3)
    return RegionOutputs(
        pooled, four, logits, four[:, None], four + 10, index, torch.tensor(labels), four + 20, values + 30
    )


def held(store: FeatureStore) -> list[float]:
    return store.regions().pooled[:, 0, 0, 0].tolist() if len(store) else []


def test_objects_are_stored_class_by_class_with_what_belongs_to_them():
    store = FeatureStore(5)
    store.add(regions([2, 0, 3, -1, 2]))  # 3 is the background, -1 ignored
    assert store.regions().labels.tolist() == [0, 2, 2]
    stored = store.regions()
    assert stored.labels.tolist() == [0, 2, 2]
    assert stored.pooled.dtype == torch.float16
    assert sorted(held(store)[1:]) == [0, 4]
    values = stored.pooled[:, 0, 0, 0].float()
    assert torch.equal(stored.boxes, values[:, None].repeat(1, 4) + 10)
    assert torch.equal(stored.delta_targets, values[:, None].repeat(1, 4) + 20)
    assert torch.equal(stored.weights, values + 30)


def test_the_newest_stay():
    store = FeatureStore(2)
    for value in range(4):
        store.add(regions([1], first=value))
    assert held(store) == [2, 3]


def test_an_image_gives_one_region_of_each_class_at_random():
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        store = FeatureStore(10)
        store.add(regions([0, 0, 0, 1, 0], images=[0, 0, 0, 0, 1]))
        assert store.regions().labels.tolist() == [0, 0, 1]
        assert {3, 4} <= set(held(store))
        seen |= set(held(store))
    assert seen == {0, 1, 2, 3, 4}


def test_what_is_stored_has_no_history():
    batch = regions([0])
    batch.pooled.requires_grad_()
    store = FeatureStore(1)
    store.add(batch)
    assert not store.regions().pooled.requires_grad


def test_a_state_comes_back_in_its_order():
    store, other = FeatureStore(2), FeatureStore(2)
    for value, label in enumerate([2, 0, 0, 2]):
        store.add(regions([label], first=value))
    other.add(regions([1], first=9))
    other.load_state_dict(store.state_dict())
    assert held(other) == held(store) == [1, 2, 0, 3]
    for one in (store, other):
        one.add(regions([0], first=5))
    assert held(other) == held(store) == [2, 5, 0, 3]


def test_an_empty_store_has_an_empty_state():
    store = FeatureStore(2)
    store.add(regions([3]))
    assert store.state_dict() == {}
    other = FeatureStore(2)
    other.add(regions([0]))
    other.load_state_dict({})
    assert len(other) == 0
    with pytest.raises(ValueError, match="is empty"):
        other.regions()


def test_a_file_gives_the_classes_that_are_asked_for_and_counts_as_memory(tmp_path):
    store, other = FeatureStore(3), FeatureStore(3)
    store.add(regions([0, 1, 2]))
    path = tmp_path / "memory" / "features.safetensors"
    store.save(path)
    other.load(path, 2)
    assert other.regions().labels.tolist() == [0, 1]
    assert held(other) == [0, 1]
    assert memory_size(tmp_path / "memory") == {"images": 0, "crops": 0, "bytes": path.stat().st_size}


def test_no_file_and_an_empty_one_leave_the_store_as_it_is(tmp_path):
    store = FeatureStore(3)
    store.load(tmp_path / "none.safetensors", 2)
    FeatureStore(3).save(tmp_path / "empty.safetensors")
    store.load(tmp_path / "empty.safetensors", 2)
    assert len(store) == 0


def test_a_damaged_file_is_one_clear_error(tmp_path):
    path = tmp_path / "features.safetensors"
    store = FeatureStore(1)
    store.add(regions([0]))
    store.save(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"features\.safetensors cannot be read as a store"):
        FeatureStore(1).load(path, 1)


def test_a_detector_fills_it_with_the_tasks_classes_and_stays_as_it_was(tmp_path):
    world = World(tmp_path, tiny_config("c4"))
    view, detector = world.context(FIRST).view, world.first.train()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    stores = [FeatureStore(2), FeatureStore(2)]
    for store in stores:
        torch.rand(3)  # whatever was drawn before changes nothing
        store.fill(detector, view, world.cfg)
    assert stores[0].regions().labels.tolist() == [0, 0, 1, 1]
    first, second = (store.state_dict() for store in stores)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert detector.training
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
