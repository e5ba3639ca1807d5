"""The values that flow between the parts."""

import torch

from incdet.structures import Batch, Detections, ImageOutputs, RegionOutputs, Target


def three_objects() -> Target:
    return Target(
        boxes=torch.arange(12.0).view(3, 4),
        labels=torch.tensor([2, 0, 1]),
        weights=torch.tensor([1.0, 0.5, 0.25]),
        use_rpn=torch.tensor([True, False, True]),
        use_roi=torch.tensor([True, True, False]),
        labelled=frozenset({0, 2}),
    )


def test_plain_ground_truth_is_used_by_both_stages_with_weight_one():
    target = Target.from_boxes(torch.zeros(2, 4), torch.tensor([1, 0]))
    assert target.weights.tolist() == [1, 1]
    assert target.use_rpn.tolist() == target.use_roi.tolist() == [True, True]
    target.use_rpn[0] = False
    assert target.use_roi.tolist() == [True, True]
    assert len(Target.from_boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))) == 0


def test_selecting_objects_keeps_all_fields_aligned():
    target = three_objects()
    for keep in (torch.tensor([False, True, True]), torch.tensor([1, 2])):
        kept = target.select(keep)
        assert kept.boxes[:, 0].tolist() == [4, 8]
        assert kept.labels.tolist() == [0, 1]
        assert kept.weights.tolist() == [0.5, 0.25]
        assert kept.use_rpn.tolist() == [False, True]
        assert kept.use_roi.tolist() == [True, False]
        assert kept.labelled == {0, 2}


def test_joined_targets_keep_their_order_and_what_is_used():
    joined = three_objects().joined(three_objects().select(torch.tensor([1])))
    assert joined.boxes[:, 0].tolist() == [0, 4, 8, 4]
    assert joined.labels.tolist() == [2, 0, 1, 0]
    assert joined.weights.tolist() == [1.0, 0.5, 0.25, 0.5]
    assert joined.use_rpn.tolist() == [True, False, True, False]
    assert joined.use_roi.tolist() == [True, True, False, True]
    assert joined.labelled == {0, 2}


def test_a_batch_moves_whole_with_or_without_targets():
    images = [torch.zeros(3, 4, 4)]
    with_targets = Batch(images, [three_objects()], ["x"]).to("meta")
    without = Batch(images, None, ["x"]).to("meta")
    assert with_targets.images[0].is_meta
    assert with_targets.targets[0].use_roi.is_meta
    assert with_targets.targets[0].labelled == {0, 2}
    assert without.targets is None
    assert without.image_ids == ["x"]
    assert len(without) == 1


def test_detections_above_a_score_include_that_score():
    found = Detections(torch.arange(12.0).view(3, 4), torch.tensor([0.9, 0.5, 0.1]), torch.tensor([3, 1, 2]))
    kept = found.above(0.5)
    assert len(kept) == 2
    assert kept.boxes.shape == (2, 4)
    assert kept.labels.tolist() == [3, 1]
    assert len(found.above(0.95)) == 0


def test_regions_are_given_back_per_image_even_where_an_image_has_none():
    index = torch.tensor([0, 0, 2])
    boxes = torch.arange(12.0).view(3, 4)
    empty = torch.zeros(3, 0)
    per_image = RegionOutputs(empty, empty, empty, empty, boxes, index).boxes_per_image(4)
    assert [len(one) for one in per_image] == [2, 0, 1, 0]
    assert torch.equal(torch.cat(per_image), boxes)


def test_selected_regions_stay_aligned_and_without_labels_where_there_were_none():
    boxes = torch.arange(12.0).view(3, 4)
    regions = RegionOutputs(boxes + 1, boxes + 2, boxes + 3, boxes + 4, boxes, torch.tensor([0, 0, 2]))
    picked = regions.select(torch.tensor([2, 0]))
    assert picked.boxes[:, 0].tolist() == [8, 0]
    assert picked.pooled[:, 0].tolist() == [9, 1]
    assert picked.image_index.tolist() == [2, 0]
    assert picked.labels is picked.weights is None


def test_proposals_are_computed_when_asked_for_and_only_once():
    calls = []

    def propose() -> list[torch.Tensor]:
        calls.append(1)
        return [torch.zeros(1, 4)]

    empty = torch.zeros(1, 0)
    outputs = ImageOutputs(None, None, {}, empty, empty, [], propose, [(4, 4)])
    assert calls == []
    assert outputs.proposals is outputs.proposals
    assert calls == [1]
