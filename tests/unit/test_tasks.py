"""Splits, class orders and the streams they make."""

import hashlib

import pytest

from incdet.errors import SplitError
from incdet.tasks import TaskSpec, build_stream, class_order_hash, order_classes, parse_split, proxy_split


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("10+10", (10, 10)),
        ("15+5", (15, 5)),
        ("19+1", (19, 1)),
        ("5+15", (5, 15)),
        ("10+5+5", (10, 5, 5)),
        ("5+5+5+5", (5, 5, 5, 5)),
        ("15+1x5", (15, 1, 1, 1, 1, 1)),
        ("10+2x5", (10, 2, 2, 2, 2, 2)),
        ("10+1x10", (10,) + (1,) * 10),
        ("40+40", (40, 40)),
        ("70+10", (70, 10)),
        ("5x4", (5, 5, 5, 5)),
        ("20", (20,)),
        (" 10 + 10 ", (10, 10)),
    ],
)
def test_a_split_is_a_sum_of_sizes(text, sizes):
    assert parse_split(text) == sizes


@pytest.mark.parametrize(
    "text",
    ["", "+", "10+", "+10", "10++10", "10-10", "0+20", "10+0", "10x0", "x5", "10x", "1x2x3", "ten", "1.5+3", "٣"],
)
def test_a_malformed_split_is_refused_with_its_bad_term(text):
    with pytest.raises(SplitError, match="cannot read the split"):
        parse_split(text)


def test_the_refusal_names_the_term_the_form_and_the_setting():
    with pytest.raises(SplitError, match=r"'10\+1O'.*'15\+1x5'.*the term '1O'.*TASKS\.SPLIT"):
        parse_split("10+1O")


def test_a_size_beyond_any_dataset_is_refused_before_it_fills_memory():
    with pytest.raises(SplitError, match="1 to 9999"):
        parse_split("1x9999999999")


@pytest.mark.parametrize(
    ("split", "total", "suggestion"),
    [
        ("15+10", 20, "15+5"),
        ("10+5", 20, "10+5+5"),
        ("40+40", 20, "10+10"),
        ("15+1x6", 20, "15+1x5"),
        ("10+10", 1, "1"),
    ],
)
def test_a_split_of_another_total_names_both_numbers_and_one_that_fits(split, total, suggestion):
    with pytest.raises(SplitError) as caught:
        build_stream(split, [f"c{i}" for i in range(total)])
    message = str(caught.value)
    assert f"teaches {sum(parse_split(split))} classes but the data has {total}" in message
    assert f"e.g. '{suggestion}'" in message
    assert sum(parse_split(suggestion)) == total


def test_orders():
    source = ("dog", "cat", "ant")
    assert order_classes(source, "alphabetical") == ("ant", "cat", "dog")
    assert order_classes(source, "id") == source
    assert order_classes(source, "listed", ["cat", "dog", "ant"]) == ("cat", "dog", "ant")


def test_a_seeded_order_depends_on_the_seed_and_the_names_alone():
    names = [f"c{i}" for i in range(20)]
    shuffled = order_classes(names, "seed:3")
    assert sorted(shuffled) == sorted(names)
    assert shuffled == order_classes(names[::-1], "seed:3") == order_classes(names, "seed:03")
    assert len({order_classes(names, f"seed:{n}") for n in range(5)}) == 5


def test_a_seeded_order_is_the_documented_hash_order():
    first, second = order_classes(["a", "b"], "seed:1")
    assert hashlib.sha256(f"1:{first}".encode()).digest() < hashlib.sha256(f"1:{second}".encode()).digest()


@pytest.mark.parametrize("order", ["", "random", "seed:", "seed:-1", "seed:x", "Alphabetical"])
def test_an_unknown_order_is_refused(order):
    with pytest.raises(SplitError, match=r"unknown class order.*TASKS\.ORDER"):
        order_classes(["a"], order)


@pytest.mark.parametrize(
    ("listed", "pattern"),
    [
        ((), "missing: ant, cat"),
        (("cat",), "missing: ant"),
        (("cat", "ant", "eel"), "unknown: eel"),
        (("cat", "eel"), "missing: ant; unknown: eel"),
        (("cat", "ant", "cat"), "repeated: cat"),
    ],
)
def test_a_listed_order_must_be_exactly_the_classes(listed, pattern):
    with pytest.raises(SplitError, match=pattern) as caught:
        order_classes(["ant", "cat"], "listed", listed)
    assert "TASKS.LISTED" in str(caught.value)


def test_a_list_that_the_order_would_ignore_is_refused():
    with pytest.raises(SplitError, match=r"TASKS\.ORDER is 'alphabetical', which would ignore them"):
        order_classes(["ant", "cat"], "alphabetical", ["cat", "ant"])


def test_repeated_classes_in_the_data_are_refused():
    with pytest.raises(SplitError, match="repeated: cat"):
        order_classes(["cat", "ant", "cat"], "id")


def test_the_hash_tells_orders_and_names_apart():
    assert class_order_hash(["a", "b"]) == hashlib.sha256(b"a\nb").hexdigest()[:12]
    assert len({class_order_hash(names) for names in (["a", "b"], ["b", "a"], ["ab"], ["a"])}) == 4


def test_a_stream_teaches_every_class_once_in_order():
    stream = build_stream("2+1x2", ["d", "c", "b", "a"])
    assert stream.classes == ("a", "b", "c", "d")
    assert [task.index for task in stream] == [1, 2, 3]
    assert len(stream) == 3
    assert stream[1] == TaskSpec(2, old=("a", "b"), new=("c",))
    assert stream[-1].seen == stream.classes
    assert stream.order_hash == class_order_hash("abcd")
    assert (stream.split, stream.order) == ("2+1x2", "alphabetical")


def test_labels_of_a_task_are_positions_in_the_stream():
    stream = build_stream("2+1+3", list("abcdef"))
    for task in stream:
        assert tuple(stream.classes[label] for label in task.old_labels) == task.old
        assert tuple(stream.classes[label] for label in task.new_labels) == task.new
        assert (task.num_old, task.num_new, task.num_seen) == (len(task.old), len(task.new), len(task.seen))
    assert stream[1].new_labels == range(2, 3)
    assert list(stream[0].old_labels) == []


@pytest.mark.parametrize(
    ("split", "proxy"),
    [
        ("10+10", "5+5"),
        ("15+5", "11+4"),
        ("19+1", "18+1"),
        ("10+5+5", "6+2+2"),
        ("5+5+5+5", "2+1x3"),
        ("15+1x5", "10+1x5"),
        ("40+40", "20+20"),
    ],
)
def test_a_proxy_has_the_first_tasks_classes_in_the_ratio_of_the_split(split, proxy):
    assert proxy_split(split) == proxy
    assert sum(parse_split(proxy)) == parse_split(split)[0]
    assert len(parse_split(proxy)) == len(parse_split(split))


@pytest.mark.parametrize("split", ["20", "1+19", "3+1x5", "2+18"])
def test_a_first_task_too_small_for_a_proxy_is_refused(split):
    with pytest.raises(SplitError, match=r"first task of .* --split"):
        proxy_split(split)
