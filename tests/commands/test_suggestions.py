"""A misspelled command, option, setting or config is answered by what was meant, in a line."""

import argparse
from pathlib import Path

import pytest

from video_gn import __main__ as script
from video_gn.commands import _options, _settings

ROOT = Path(__file__).parents[2]
FINETUNE = "fit -c configs/finetune.yaml"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def refusal(words, capsys):
    """What a command line that is refused prints."""
    assert script.main(words.split()) == 2
    printed = capsys.readouterr()
    assert not printed.out
    text = printed.err.removeprefix("video-gn: error: ")
    assert text != printed.err and "usage" not in text
    return text


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("fitt", "there is no command 'fitt'. Did you mean fit?"),
        ("infer --chekpoint x", "there is no option --chekpoint. Did you mean --checkpoint?"),
        ("infer --check x a.mp4", "there is no option --check. Did you mean --checkpoint?"),
        ("infer --num-clips 3 a.mp4", "there is no option --num-clips. Did you mean --num_clips?"),
        ("infer --top_k x a.mp4", "--top_k must be an integer, got 'x'."),
        ("infer --top_k", "--top_k must have a value, got none."),
        ("infer --crops centre a", "--crops must be one of center, three, full, got 'centre'. Did you mean center?"),
        ("data scann", "COMMAND must be one of synth, scan, prepare, show, got 'scann'. Did you mean scan?"),
        # Its missing --output is a consequence.
        (
            "data scan a --outptu x",
            "there is no option --outptu. Did you mean --output? See `video-gn data scan --help`",
        ),
        ("data scan a --output x.csv --ful", "there is no option --ful. Did you mean --full?"),
        ("data prepare a b --crf x", "--crf must be a number, got 'x'."),
        ("weights inspec x", "COMMAND must be one of inspect, convert, got 'inspec'. Did you mean inspect?"),
        ("weights inspect x --format slofast", "got 'slofast'. Did you mean slowfast?"),
        ("report", "RUN_DIR must be given, got none."),
        ("study --data.train x", "-c/--config must be given, got none."),
        ("study -c configs/study/weizman.yaml", "is not there. Did you mean configs/study/weizmann.yaml?"),
        ("study -c configs/study/weizmann.yaml --list --collect", "--collect must not stand with --list."),
        ("study -c configs/study/weizmann.yaml --data.trian x", "no option --data.trian. Did you mean --data.train?"),
        ("bench dta", "got 'dta'. Did you mean data?"),
    ],
)
def test_words_of_commands(words, answer, capsys):
    assert answer in refusal(words, capsys)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (
            f"{FINETUNE} --batch_size 3",
            "there is no option --batch_size. Did you mean --data.batch_size? See `video-gn",
        ),
        (
            f"{FINETUNE} --data.batch=3",
            "no option --data.batch. Did you mean --data.batch_size or --data.val_batch_size?",
        ),
        (f"{FINETUNE} --trainer.max_epoch 3", "Did you mean --trainer.max_epochs?"),
        (f"{FINETUNE} --learning-rate 3", "Did you mean --model.optimizer.lr?"),
        (f"{FINETUNE} --norm group", "Did you mean --model.net.norm?"),
        (
            f"{FINETUNE} --model.net video_gn.models.x3d_s --model.net.layout slowfast",
            "there is no setting model.net.layout. See `video-gn fit --help`.",
        ),
        (f"{FINETUNE} --model.net.nrom group", "there is no setting model.net.nrom. Did you mean model.net.norm?"),
        (f"{FINETUNE} --model.net.norm gruop", "model.net.norm must be one of batch, group, "),
        (f"{FINETUNE} --model.net.norm gruop", "got 'gruop'. Did you mean group?"),
        (f"{FINETUNE} --data.batch_size x", "data.batch_size must be an integer, got 'x'."),
        (f"{FINETUNE} --ddp.compression int8", "ddp.compression must be one of none, bf16, got 'int8'."),
        (f"{FINETUNE} --guard.action warn", "guard.action must be one of stop, skip, got 'warn'."),
        (f"{FINETUNE} --averaging.kind swa", "averaging.kind must be one of none, ema, mean, got 'swa'."),
        (f"{FINETUNE} --trainer.max_epochs x", "trainer.max_epochs must be an integer or null, got 'x'."),
        (f"{FINETUNE} --trainer.callbacks EarlyStoping", "Did you mean EarlyStopping?"),
        (f"{FINETUNE} data.train=videos", "'data.train=videos' stands alone. Did you mean --data.train=videos?"),
        ("fit configs/finetune.yaml", "'configs/finetune.yaml' stands alone. Did you mean -c configs/finetune.yaml?"),
        ("fit -c configs/finetun.yaml", "configs/finetun.yaml is not there. Did you mean configs/finetune.yaml"),
        (
            "fit -c configs/study/weizmann.yaml",
            "got a study. Run it with `video-gn study -c configs/study/weizmann.yaml`",
        ),
        ("test --rundir runs/mine", "there is no option --rundir. Did you mean --run_dir?"),
        ("test --ckpt_path none.ckpt", "Give --run_dir of a training, or one with -c:"),
        ("data show configs/demo.yam", "configs/demo.yam is not there. Did you mean configs/demo.yaml?"),
        ("data show configs/demo.yaml --outptu x", "no option --outptu. Did you mean --output?"),
        ("data show configs/demo.yaml --data.trian x", "no option --data.trian. Did you mean --data.train?"),
    ],
)
def test_settings_and_configs(words, answer, capsys):
    assert answer in refusal(words, capsys)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("--model.net.init_args.norm bach", "model.net.norm must be one of batch, group, "),
        ("--seed_everything -5", "seed_everything must be in [0, 2**32), got -5."),
        (
            "--trainer.precision fp16",
            "trainer.precision must be one of 32-true, 32, bf16-mixed, 16-mixed, got 'fp16'. Choose one.",
        ),
        (
            "--trainer.precision bf16-mxied",
            "trainer.precision must be one of 32-true, 32, bf16-mixed, 16-mixed, got 'bf16-mxied'. Did you mean bf16-m",
        ),
    ],
)
def test_a_refusal_begins_with_the_setting(words, answer, capsys):
    assert refusal(f"{FINETUNE} {words}", capsys).startswith(answer)


@pytest.mark.parametrize(
    ("config", "answer"),
    [
        (
            "model: {net: video_gn.models.i3d}\ndata:\n  trian: x\n",
            ":3: there is no setting data.trian. Did you mean data.t",
        ),
        ("modle:\n  net: video_gn.models.i3d\n", ":2: there is no setting modle.net. Did you mean model.net"),
        (
            "model:\n  net:\n    class_path: video_gn.models.i3d\n    init_args:\n      nrom: group\n",
            ":5: there is no setting model.net.nrom. Did you mean model.net.norm?",
        ),
        (
            "model:\n  net: video_gn.models.i3d\ntrainer:\n  max_epochs: x\n",
            ":4: trainer.max_epochs must be an integer or null",
        ),
        (
            "model: {net: video_gn.models.i3dd}\n",
            ":1: model.net must be the import path of a class, got 'i3dd'. Did you mean v",
        ),
        ("data: {train: x}\n", "model.net must be given, got none in "),
        ("model: {net: x\ndata: x\n", " is not yaml: "),
        ("words\n", " must hold settings, KEY: VALUE, got str."),
    ],
)
def test_keys_of_a_config_are_named_with_file_and_line(config, answer, capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(config)
    text = refusal(
        f"fit -c configs/recipes/sharded.yaml -c {path}" if answer.startswith(":4") else f"fit -c {path}", capsys
    )
    assert answer in text and str(path) in text


@pytest.mark.parametrize(("command", "run"), [("fit", ""), ("test", "--run_dir of a training, or ")])
def test_without_a_config_the_configs_are_listed(command, run, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # those beside the package, where there are none
    text = refusal(command, capsys)
    assert text.startswith(f"{command} must have a config, got none. Give {run}one with -c:\n")
    for path in ("configs/finetune.yaml ", "configs/demo.yaml ", "configs/recipes/sharded.yaml "):
        assert str(ROOT / path) in text
    assert "configs/study" not in text and "Your own videos" in text
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/mine.yaml").write_text("# My own.\n")
    assert refusal(command, capsys).splitlines()[1:] == ["  configs/mine.yaml  My own."]


def test_help_begins_with_our_settings(capsys):
    with pytest.raises(SystemExit):
        script.main(["fit", "--help_all"])
    text = capsys.readouterr().out
    ours = ["--run_dir", "--ckpt_path", "--data.train", "--model.net", "--checkpoint.monitor", "--averaging.kind"]
    places = [text.index(f"  {name} ") for name in [*ours, "--trainer.accelerator"]]
    assert places == sorted(places)
    assert "registry" not in text[: places[-1]], "Lightning's own words on checkpoints"


def test_no_parser_accepts_abbreviations():
    parsers = [_options.Options(), _settings.config_parser()]
    parsers[0].add_subparsers().add_parser("x")
    parsers.append(parsers[0]._actions[-1].choices["x"])
    assert not any(parser.allow_abbrev for parser in parsers)
    for path in (ROOT / "video_gn/commands").glob("*.py"):
        assert "argparse.ArgumentParser(" not in path.read_text().replace("(argparse.ArgumentParser)", ""), path
    assert issubclass(_options.Options, argparse.ArgumentParser)
