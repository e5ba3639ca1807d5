"""The configuration tree: merges as detectron2's does, and says what is wrong and where."""

import pytest

from incdet.config.node import CfgNode, Library, annotate, config_for_task, diff
from incdet.errors import ConfigError


def defaults() -> CfgNode:
    cfg = CfgNode()
    cfg.MODEL = CfgNode()
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.FREEZE_AT = 2
    cfg.MODEL.SIZES = ((32,), (64,))
    cfg.SOLVER = CfgNode()
    cfg.SOLVER.BASE_LR = 0.02
    cfg.SOLVER.STEPS = (30, 40)
    cfg.SOLVER.NESTEROV = False
    cfg.METHODS = ["finetune"]
    cfg.TEST = CfgNode()
    cfg.TEST.LIMIT = None
    cfg.OUTPUT_DIR = "./output"
    cfg.NEXT_TASKS = CfgNode(new_allowed=True)
    return cfg


@pytest.fixture
def cfg():
    return defaults()


@pytest.fixture
def write(tmp_path):
    def write_yaml(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_yaml


def test_bases_are_merged_first_and_are_relative_to_the_file_that_names_them(cfg, write):
    write("_base_/model.yaml", "MODEL: {FREEZE_AT: 4, WEIGHTS: model}\n")
    write("_base_/solver.yaml", "_BASE_: model.yaml\nSOLVER: {BASE_LR: 0.5}\nMODEL: {FREEZE_AT: 3}\n")
    write("_base_/other.yaml", "SOLVER: {NESTEROV: true}\n")
    path = write("voc/a.yaml", "_BASE_: [../_base_/solver.yaml, ../_base_/other.yaml]\nSOLVER: {BASE_LR: 0.25}\n")
    cfg.merge_from_file(path)
    assert (cfg.MODEL.WEIGHTS, cfg.MODEL.FREEZE_AT) == ("model", 3)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.NESTEROV, cfg.SOLVER.STEPS) == (0.25, True, (30, 40))
    assert cfg.origin("SOLVER.BASE_LR") == f"in {path}"
    assert cfg.origin("MODEL.FREEZE_AT").endswith("_base_/solver.yaml")
    assert cfg.origin("SOLVER.STEPS") is None


def test_a_cycle_of_bases_is_shown_as_a_chain(cfg, write):
    write("b.yaml", "_BASE_: ./a.yaml\n")
    path = write("a.yaml", "_BASE_: b.yaml\n")
    with pytest.raises(ConfigError, match=r"cycle: \S*a\.yaml -> \S*b\.yaml -> \S*a\.yaml"):
        cfg.merge_from_file(path)


def test_two_files_may_share_a_base(cfg, write):
    write("base.yaml", "MODEL: {FREEZE_AT: 1}\n")
    write("left.yaml", "_BASE_: base.yaml\nMODEL: {FREEZE_AT: 5}\n")
    write("right.yaml", "_BASE_: base.yaml\n")
    cfg.merge_from_file(write("a.yaml", "_BASE_: [left.yaml, right.yaml]\n"))
    assert cfg.MODEL.FREEZE_AT == 1


def test_a_missing_file_names_what_is_near(cfg, write, tmp_path):
    write("configs/shapes.yaml", "")
    with pytest.raises(ConfigError, match=r"shape\.yaml does not exist\. In \S*configs there is: shapes\.yaml"):
        cfg.merge_from_file(tmp_path / "configs" / "shape.yaml")
    with pytest.raises(ConfigError, match=r"In \S* there is: configs"):
        cfg.merge_from_file(tmp_path / "config" / "shapes.yaml")
    path = write("a.yaml", "_BASE_: nowhere.yaml\n")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml, named as _BASE_ in \S*a\.yaml, does not exist"):
        cfg.merge_from_file(path)


def test_a_python_tag_is_refused_and_not_run(cfg, write, tmp_path):
    bomb = f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n"
    with pytest.raises(ConfigError, match=r"bomb\.yaml is not plain YAML.*refused"):
        cfg.merge_from_file(write("bomb.yaml", bomb))
    with pytest.raises(ConfigError, match=r"bomb\.yaml"):
        cfg.merge_from_file(write("a.yaml", "_BASE_: bomb.yaml\n"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER: [", r"bad\.yaml is not plain YAML"),
        ("- a\n- b\n", r"bad\.yaml must hold .* got a list"),
        ("MODEL: {FREEZE_AT: 1}\nMODEL: {WEIGHTS: a}\n", r"bad\.yaml.*MODEL is given twice"),
        ("_BASE_: 3\n", r"_BASE_ expects a path.*bad\.yaml"),
        ("SOLVER: 3\n", r"SOLVER is a section of keys, got int 3; set in \S*bad\.yaml.*BASE_LR"),
        ("SOLVER:\n", r"SOLVER is a section of keys, got NoneType"),
        ("OUTPUT_DIR: {A: 1}\n", r"OUTPUT_DIR\.A is set in \S*bad\.yaml, but what is before \.A is a value"),
        ("METHODS: {}\n", r"METHODS expects list .*got dict"),
        ("TEST: {LIMIT: 2024-01-01}\n", r"TEST\.LIMIT expects a number, text or a list, got date"),
    ],
)
def test_a_file_that_cannot_be_honoured_is_named(cfg, write, text, message):
    with pytest.raises(ConfigError, match=message):
        cfg.merge_from_file(write("bad.yaml", text))


def test_an_unknown_key_names_itself_its_file_and_the_nearest_key(cfg, write):
    write("base.yaml", "SOLVER: {BASE_RL: 0.1}\n")
    path = write("a.yaml", "_BASE_: base.yaml\n")
    with pytest.raises(
        ConfigError, match=r"Unknown key SOLVER\.BASE_RL, set in \S*base\.yaml\. .*mean SOLVER\.BASE_LR\?"
    ):
        cfg.merge_from_file(path)
    with pytest.raises(ConfigError, match=r"solver\.base_lr, set on the command line\. .*SOLVER\.BASE_LR\?"):
        cfg.merge_from_list(["solver.base_lr", "0.1"])
    with pytest.raises(ConfigError, match=r"Unknown key QQQ.*show_config"):
        cfg.merge_from_list(["QQQ", "1"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.BASE_LR", "fast", r"SOLVER\.BASE_LR expects float \(now 0\.02\), got str 'fast'; set on the command"),
        ("SOLVER.BASE_LR", "True", "got bool True"),
        ("MODEL.FREEZE_AT", "1.5", "expects int .* got float 1.5"),
        ("SOLVER.STEPS", "soon", r"expects tuple .*got str 'soon'.*\['a', 'b'\]"),
        ("TEST.LIMIT", "{1, 2}", "got set"),
        ("SOLVER", "1", "section of keys"),
        ("OUTPUT_DIR.A.B", "1", r"OUTPUT_DIR\.A\.B"),
    ],
)
def test_a_wrong_type_on_the_command_line(cfg, key, value, message):
    with pytest.raises(ConfigError, match=message):
        cfg.merge_from_list([key, value])


def test_values_on_the_command_line_are_python_literals(cfg):
    cfg.merge_from_list(["SOLVER.BASE_LR", "1e-4", "SOLVER.STEPS", "[1, 2]", "METHODS", "('a', 'b')"])
    cfg.merge_from_list(
        ["OUTPUT_DIR", "2024", "MODEL.WEIGHTS", "'quoted'", "TEST.LIMIT", "5", "SOLVER.NESTEROV", "True"]
    )
    assert cfg.SOLVER.BASE_LR == 1e-4
    assert cfg.SOLVER.STEPS == (1, 2)
    assert cfg.METHODS == ["a", "b"]
    assert cfg.OUTPUT_DIR == "2024"
    assert cfg.MODEL.WEIGHTS == "quoted"
    assert cfg.TEST.LIMIT == 5
    assert cfg.SOLVER.NESTEROV is True
    cfg.merge_from_list(["SOLVER.BASE_LR", "1", "TEST.LIMIT", "None"])
    assert (cfg.SOLVER.BASE_LR, type(cfg.SOLVER.BASE_LR)) == (1.0, float)
    assert cfg.TEST.LIMIT is None


def test_an_odd_number_of_words_is_refused(cfg):
    with pytest.raises(ConfigError, match=r"pairs KEY VALUE .*got 1 words: SOLVER\.BASE_LR=1"):
        cfg.merge_from_list(["SOLVER.BASE_LR=1"])


def test_a_number_that_yaml_reads_as_text_is_a_number(cfg, write):
    cfg.merge_from_file(write("a.yaml", "SOLVER: {BASE_LR: 1e-4, STEPS: '(1, 2)'}\nOUTPUT_DIR: '7'\n"))
    assert cfg.SOLVER.BASE_LR == 1e-4
    assert cfg.SOLVER.STEPS == (1, 2)
    assert cfg.OUTPUT_DIR == "7"


def test_next_tasks_apply_from_the_second_task_on(cfg, write):
    path = write("a.yaml", "NEXT_TASKS: {SOLVER: {BASE_LR: 0.002, STEPS: [5]}}\n")
    cfg.merge_from_file(path)
    cfg.merge_from_list(["NEXT_TASKS.SOLVER.BASE_LR", "0.01", "NEXT_TASKS.METHODS", "['replay']"])
    first, second = config_for_task(cfg, 1), config_for_task(cfg, 2)
    assert first == cfg
    assert (second.SOLVER.BASE_LR, second.SOLVER.STEPS, second.METHODS) == (0.01, (5,), ["replay"])
    assert cfg.SOLVER.BASE_LR == 0.02
    assert second.origin("SOLVER.BASE_LR") == "on the command line"
    assert second.origin("SOLVER.STEPS") == f"in {path}"
    assert second.SOLVER.NESTEROV is False


def test_a_frozen_configuration_gives_frozen_task_configurations(cfg):
    cfg.merge_from_list(["NEXT_TASKS.SOLVER.BASE_LR", "0.01"])
    cfg.freeze()
    second = config_for_task(cfg, 2)
    assert second.SOLVER.BASE_LR == 0.01
    with pytest.raises(AttributeError):
        second.SOLVER.BASE_LR = 1.0


def test_next_tasks_are_checked_against_the_root_when_merged(cfg, write):
    with pytest.raises(ConfigError, match=r"Unknown key NEXT_TASKS\.SOLVER\.LR, set in .*mean NEXT_TASKS\.SOLVER"):
        cfg.merge_from_file(write("a.yaml", "NEXT_TASKS: {SOLVER: {LR: 0.1}}\n"))
    with pytest.raises(ConfigError, match=r"NEXT_TASKS\.SOLVER\.BASE_LR expects float"):
        cfg.merge_from_list(["NEXT_TASKS.SOLVER.BASE_LR", "fast"])
    assert cfg == defaults()


def test_overrides_of_overrides_are_refused(cfg):
    cfg.merge_from_list(["NEXT_TASKS.SOLVER.BASE_LR", "0.1"])
    with pytest.raises(ConfigError, match=r"Unknown key NEXT_TASKS\.NEXT_TASKS"):
        cfg.merge_from_list(["NEXT_TASKS.NEXT_TASKS.SOLVER.BASE_LR", "0.1"])


def test_next_tasks_set_in_code_are_checked_when_used(cfg):
    cfg.NEXT_TASKS.SOLVER = CfgNode({"BASE_LR": "fast"})
    with pytest.raises(ConfigError, match=r"SOLVER\.BASE_LR expects float.*in code \(NEXT_TASKS\)"):
        config_for_task(cfg, 2)


def test_a_dump_round_trips(cfg, write):
    cfg.merge_from_list(["OUTPUT_DIR", "7", "SOLVER.BASE_LR", "1e-5", "NEXT_TASKS.SOLVER.STEPS", "(1,)"])
    cfg.merge_from_list(["METHODS", "[]", "MODEL.SIZES", "[[8], (16, 32)]"])
    again = defaults()
    again.merge_from_file(write("dump.yaml", cfg.dump()))
    assert again == cfg
    assert again.SOLVER.STEPS == (30, 40)
    assert again.MODEL.SIZES == ((8,), (16, 32))


def test_the_annotated_form_round_trips_and_tells_where_keys_were_set(cfg, write):
    path = write("a.yaml", "SOLVER: {BASE_LR: 0.1}\nNEXT_TASKS: {SOLVER: {BASE_LR: 0.01}}\n")
    cfg.merge_from_file(path)
    cfg.merge_from_list(["METHODS", "['distill']"])
    cfg.OUTPUT_DIR = "elsewhere # not a comment"
    text = annotate(cfg, defaults())
    lines = text.splitlines()
    assert f"  BASE_LR: 0.1  # default 0.02; set in {path}" in lines
    assert f"    BASE_LR: 0.01  # default null; set in {path}" in lines
    assert "METHODS: [distill]  # default [finetune]; set on the command line" in lines
    assert "OUTPUT_DIR: 'elsewhere # not a comment'  # default ./output; set in code" in lines
    assert "  STEPS: [30, 40]" in lines
    again = defaults()
    again.merge_from_file(write("annotated.yaml", text))
    assert again == cfg


def test_diff_lists_dotted_keys_and_both_values(cfg):
    cfg.merge_from_list(["SOLVER.BASE_LR", "0.1", "NEXT_TASKS.SOLVER.BASE_LR", "0.2"])
    assert diff(cfg, defaults()) == {"NEXT_TASKS.SOLVER.BASE_LR": (0.2, None), "SOLVER.BASE_LR": (0.1, 0.02)}
    assert diff(cfg, cfg.clone()) == {}
    assert cfg.clone().origin("SOLVER.BASE_LR") == "on the command line"


def test_another_configuration_is_checked_like_a_file(cfg):
    cfg.merge_from_other_cfg({"SOLVER": {"STEPS": [7]}})
    assert cfg.SOLVER.STEPS == (7,)
    assert cfg.origin("SOLVER.STEPS") == "in code"
    with pytest.raises(ConfigError, match=r"Unknown key SOLVER\.STEP, set in model\.safetensors\."):
        cfg.merge_from_other_cfg(CfgNode({"SOLVER": {"STEP": 1}}), where="in model.safetensors")


# ---------------------------------------------------------------------- a library's keys and files


@pytest.fixture
def known(cfg, write):
    """The configuration, knowing a library whose value is ``MODEL.KIND: fast`` and whose files lie in a folder."""
    theirs = CfgNode({"MODEL": {"SPEED": 3, "FREEZE_AT": 5}, "TURBO": {"ENABLED": False}})
    zoo = write("zoo/quick.yaml", "_BASE_: base.yaml\nMODEL: {SPEED: 7}\n").parent
    write("zoo/base.yaml", "MODEL: {WEIGHTS: theirs}\nTURBO: {ENABLED: true}\n")
    cfg.KIND = "plain"
    cfg.know(Library("fast", "KIND", lambda: theirs, lambda name: zoo / name))
    return cfg


def test_a_value_brings_the_keys_of_its_library_and_leaves_ours(known):
    with pytest.raises(ConfigError, match=r"Unknown key MODEL\.SPEED.*A key of fast needs KIND: fast beside it"):
        known.merge_from_list(["MODEL.SPEED", 4])
    known.merge_from_list(["KIND", "fast", "MODEL.SPEED", 4, "TURBO.ENABLED", True])
    assert (known.MODEL.SPEED, known.MODEL.FREEZE_AT, known.TURBO.ENABLED) == (4, 2, True)
    assert known.origin("MODEL.FREEZE_AT") is None
    with pytest.raises(ConfigError, match=r"MODEL\.SPEED expects int \(now 4\), got str 'x'"):
        known.merge_from_list(["MODEL.SPEED", "x"])


def test_a_file_may_use_the_librarys_keys_beside_the_value_in_any_order(known, write):
    known.merge_from_file(write("a.yaml", "MODEL: {SPEED: 9}\nKIND: fast\n"))
    assert known.MODEL.SPEED == 9


def test_a_base_in_the_library_brings_its_defaults_first(known, write):
    path = write("a.yaml", "_BASE_: fast://quick.yaml\nMODEL: {WEIGHTS: ours}\n")
    known.merge_from_file(path)
    assert known.KIND == "fast"
    assert known.MODEL.FREEZE_AT == 5  # the library's default, which its file counts on
    assert (known.MODEL.SPEED, known.MODEL.WEIGHTS, known.TURBO.ENABLED) == (7, "ours", True)
    assert known.origin("MODEL.FREEZE_AT") is None
    assert known.origin("MODEL.SPEED").endswith("zoo/quick.yaml")


def test_keys_of_a_library_that_is_left_again_are_strays_if_they_were_set(known, write):
    known.merge_from_list(["KIND", "fast"])
    known.merge_from_list(["KIND", "plain"])
    assert known.strays() == []
    known.merge_from_list(["KIND", "fast", "TURBO.ENABLED", True])
    assert known.strays() == []
    known.merge_from_list(["KIND", "plain"])
    assert known.strays() == ["TURBO.ENABLED"]


def test_a_copy_knows_the_library_too_and_learns_alone(known):
    copied = known.clone()
    copied.merge_from_list(["KIND", "fast"])
    assert "SPEED" in copied.MODEL
    assert "SPEED" not in known.MODEL
    known.merge_from_list(["KIND", "fast"])
    assert known.MODEL.SPEED == 3


def test_text_is_a_list_of_one_or_of_what_commas_part(cfg):
    cfg.merge_from_list(["METHODS", "replay"])
    assert cfg.METHODS == ["replay"]
    cfg.merge_from_list(["METHODS", "replay, pseudo_label,"])
    assert cfg.METHODS == ["replay", "pseudo_label"]
