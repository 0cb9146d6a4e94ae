"""Training learns, stops and resumes bit-equally, names what breaks, and keeps best and last checkpoints."""

import json

import cv2
import numpy as np
import pytest
import torch

from basnet_torch.checkpoint import load_checkpoint, model_from_checkpoint
from basnet_torch.data.datasets import PairStore, find_pairs, read_pair
from basnet_torch.errors import CheckpointError, DataError, TrainingError, UsageError
from basnet_torch.json_values import to_plain
from basnet_torch.metrics import AccuracyMeter
from basnet_torch.model.basnet import BASNet
from basnet_torch.spec import Postprocess, Preprocess
from basnet_torch.train.config import PRESETS, TrainConfig, learning_rate
from basnet_torch.train.trainer import Trainer, processing_of
from basnet_torch.train.validate import Validator
from tests.torch.conftest import write_png

SMALL = {
    "width": 2,
    "size": 32,
    "eval_size": 64,
    "store_size": 64,
    "batch": 2,
    "steps": 6,
    "warmup": 2,
    "autocast": "fp32",
    "eval_every": 3,
    "save_every": 2,
}


def config(**changes):
    return TrainConfig(**{**SMALL, **changes})


def validator(pair_folder):
    return Validator(find_pairs([pair_folder]), Preprocess(height=64, width=64), Postprocess())


def state_of(trainer):
    return {**trainer.model.state_dict(), **{f"average.{k}": v for k, v in trainer.average.state_dict().items()}}


@pytest.mark.parametrize(
    ("changes", "stop"),
    [
        ({}, 1),
        ({"ema": 0.0, "optimizer": "rmsprop"}, 2),
        ({"autocast": "bf16", "optimizer": "adam"}, 3),
        ({"augment": "strong", "crop_scale": (0.5, 1.3), "optimizer": "sgd", "lr": 1e-2}, 4),
        ({"augment": "authors", "scale": "image_max", "batch": 4, "accumulate": 2, "encoder_lr": 0.1}, 5),
    ],
)
def test_resume_is_bit_equal_to_an_uninterrupted_run(store, tmp_path, changes, stop):
    whole = Trainer(config(**changes), store, tmp_path / "whole")
    losses = [r.loss for r in whole.fit()]
    first = Trainer(config(**changes), store, tmp_path / "cut")
    begun = [r.loss for r in first.fit(until=stop)]
    second = Trainer(config(**changes), store, tmp_path / "cut")
    second.resume(tmp_path / "cut" / "last.pth")
    assert begun + [r.loss for r in second.fit()] == losses
    for name, value in state_of(whole).items():
        assert torch.equal(value, state_of(second)[name]), name


def test_leaving_the_loop_early_still_saves(store, tmp_path):
    steps = Trainer(config(), store, tmp_path).fit()
    next(steps)
    steps.close()
    fresh = Trainer(config(), store, tmp_path)
    fresh.resume(tmp_path / "last.pth")
    assert fresh.step == 1


def test_it_learns(store, tmp_path):
    trainer = Trainer(config(width=4, steps=40, batch=6, lr=5e-3, crop_scale=(1.0, 1.0)), store, tmp_path)
    losses = [r.loss for r in trainer.fit()]
    assert losses[-1] < 0.75 * losses[0]


def test_best_and_last_carry_their_preprocess_and_scores(store, pair_folder, tmp_path):
    trainer = Trainer(config(), store, tmp_path / "run", validator=validator(pair_folder))
    list(trainer.fit())
    for name in ("best.pth", "last.pth"):
        checkpoint = load_checkpoint(tmp_path / "run" / name)
        assert checkpoint.preprocess == Preprocess(height=64, width=64)
        assert checkpoint.metadata["config"]["width"] == 2
    best = load_checkpoint(tmp_path / "run" / "best.pth")
    again = validator(pair_folder).scores(model_from_checkpoint(best))
    assert again.max_f == pytest.approx(best.metadata["scores"]["max_f"], abs=1e-6)
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if r["kind"] == "validation"] == [3, 6]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"] == to_plain(config())


def test_non_finite_loss_names_term_and_map(store, tmp_path):
    trainer = Trainer(config(), store, tmp_path)
    with torch.no_grad():
        trainer.model.predict.side_outputs.convs["stage4"].bias.fill_(float("inf"))
    with pytest.raises(TrainingError, match="step 0: bce of decoder4 is not finite"):
        list(trainer.fit())


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_broken_step_does_not_replace_the_good_state(store, tmp_path, ema):
    """The step that overflows has moved batch statistics already; what was saved before it stays."""
    trainer = Trainer(config(ema=ema), store, tmp_path)
    steps = trainer.fit()
    for _ in range(3):
        next(steps)
    with torch.no_grad():
        trainer.model.predict.encoder.stem.conv.weight.fill_(float("inf"))
    with pytest.raises(TrainingError, match="step 3"):
        next(steps)
    resumed = Trainer(config(ema=ema), store, tmp_path)
    resumed.resume(tmp_path / "last.pth")
    assert resumed.step == 2
    assert all(torch.isfinite(v).all() for v in state_of(resumed).values() if v.is_floating_point())


def test_stop_ends_between_steps_and_saves(store, tmp_path):
    trainer = Trainer(config(), store, tmp_path)
    for result in trainer.fit():
        if result.step == 3:
            trainer.stop()
    assert trainer.step == 3
    assert load_checkpoint(tmp_path / "last.pth").metadata["step"] == 3


def test_resume_refuses_other_pairs(store, tmp_path):
    list(Trainer(config(), store, tmp_path).fit(until=1))
    other = PairStore(tuple(reversed(store.names)), store.images, store.masks)
    with pytest.raises(CheckpointError, match="trained on 12 other pairs"):
        Trainer(config(), other, tmp_path).resume(tmp_path / "last.pth")


def test_resume_refuses_another_configuration_and_bare_weights(store, pair_folder, tmp_path):
    list(Trainer(config(), store, tmp_path, validator=validator(pair_folder)).fit(until=3))
    with pytest.raises(CheckpointError, match=r"lr 0\.001 -> 0\.01"):
        Trainer(config(lr=0.01), store, tmp_path).resume(tmp_path / "last.pth")
    with pytest.raises(CheckpointError, match="holds weights only"):
        Trainer(config(), store, tmp_path).resume(tmp_path / "best.pth")


def test_the_average_trails_the_weights(store, tmp_path):
    trainer = Trainer(config(ema=0.9), store, tmp_path)
    start = trainer.average.refine.input.weight.clone()
    list(trainer.fit(until=1))
    moved = trainer.model.refine.input.weight - start
    decay = (1 + 0) / (10 + 0)
    torch.testing.assert_close(trainer.average.refine.input.weight - start, moved * (1 - decay), rtol=1e-3, atol=1e-7)


def test_learning_rate_ends_at_zero_or_stays():
    cosine = config(steps=100, warmup=10, lr=1.0)
    assert learning_rate(cosine, 99) < 0.001
    assert learning_rate(config(steps=100, warmup=10, lr=1.0, schedule="constant"), 99) == 1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 100}, "size: size 100x100"),
        ({"batch": 0}, "batch is 0"),
        ({"ema": 1.0}, "ema"),
        ({"lr": 0.0}, "lr"),
        ({"seed": -1}, "seed is -1"),
        ({"flip": 2.0}, "flip"),
        ({"crop_scale": (0.0, 2.0)}, "crop_scale"),
        ({"crop_stretch": 0.5}, "crop_stretch"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"optimizer": "lion"}, "adamw, adam, sgd, rmsprop"),
        ({"accumulate": 3}, "accumulate is 3; it must be a divisor of the batch, 2"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"encoder_lr": 0.0}, "encoder_lr is 0.0"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"arch": "unet", "encoder_lr": 0.1}, "of a ResNet encoder, which unet has not"),
        ({"distill": 0.0}, "distill is 0.0"),
        ({"crop_scale": (0.5, 1.2)}, r"two shares in 0..1"),
        ({"augment": "strong", "crop_scale": (0.5, 2.2)}, r"two shares in 0..2"),
        ({"augment": "authors", "size": 96}, "the authors' crops are at most store_size, 64"),
    ],
)
def test_config_refuses_nonsense(fields, message):
    with pytest.raises(UsageError, match=message):
        config(**fields)


def test_config_survives_json_and_refuses_unknown_fields():
    assert TrainConfig.read(json.loads(json.dumps(to_plain(config())))) == config()
    with pytest.raises(UsageError, match="unknown fields nonsense"):
        TrainConfig.read({**to_plain(config()), "nonsense": 1})


def test_a_step_in_parts_is_the_step_as_a_whole(store, tmp_path, monkeypatch):
    """Up to batch norm, which sees each part alone: with its statistics fixed the two are equal."""
    losses, weights = [], []
    for parts in (1, 2):
        trainer = Trainer(
            config(batch=4, accumulate=parts, steps=1, ema=0.0, optimizer="sgd"), store, tmp_path / f"{parts}"
        )
        stays = trainer.model.eval()
        monkeypatch.setattr(stays, "train", lambda *_, model=stays: model)
        losses += [r.loss for r in trainer.fit()]
        weights.append(trainer.model.predict.bridge[0].conv.weight.detach().clone())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "rmsprop"])
def test_optimizers_are_pytorch_s_own(store, tmp_path, optimizer):
    trainer = Trainer(config(optimizer=optimizer, momentum=0.8, weight_decay=0.01), store, tmp_path)
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    kinds |= {"sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}
    assert type(trainer.optimizer) is kinds[optimizer]
    (group,) = trainer.optimizer.param_groups
    assert group["weight_decay"] == 0.01
    assert group.get("momentum", 0.8) == 0.8


def test_earlier_encoder_stages_learn_more_slowly(store, tmp_path):
    trainer = Trainer(config(encoder_lr=0.1, layer_decay=0.5, warmup=0, schedule="constant", steps=1), store, tmp_path)
    list(trainer.fit())
    rates = {id(p): g["lr"] for g in trainer.optimizer.param_groups for p in g["params"]}
    encoder = trainer.model.predict.encoder
    found = [rates[id(part)] for part in (encoder.stem.conv.weight, encoder.stage1[0].conv1.weight)]
    found += [rates[id(part)] for part in (encoder.stage6[0].conv1.weight, trainer.model.refine.input.weight)]
    assert found == pytest.approx([1e-3 * 0.1 / 64, 1e-3 * 0.1 / 32, 1e-4, 1e-3])
    assert len(rates) == len(list(trainer.model.parameters()))


def test_a_teacher_s_masks_are_learned(store, tmp_path):
    Trainer(config(width=4, steps=1), store, tmp_path / "teacher").save_last()
    teacher = tmp_path / "teacher/last.pth"
    with torch.no_grad():
        content = torch.load(teacher, weights_only=True)
        content["state_dict"]["refine.output.bias"].fill_(30.0)  # it sees an object everywhere
    torch.save(content, teacher)
    options = {"steps": 12, "lr": 1e-2, "teacher": str(teacher), "ema": 0.0}
    masks = []
    for share in (1.0, 0.01):
        trainer = Trainer(config(distill=share, **options), store, tmp_path / f"student{share}")
        results = list(trainer.fit())
        assert set(results[0].terms) == {"bce", "ssim", "iou", "teacher"}
        masks.append(trainer.model.train().mask(torch.zeros(2, 3, 32, 32)).mean().item())
    assert masks[0] > masks[1] + 0.1
    with pytest.raises(UsageError, match="scaled by 255, this run by image_max"):
        Trainer(config(teacher=str(teacher), scale="image_max"), store, tmp_path / "other")


def test_compiled_it_is_the_same_network(store, tmp_path):
    plain = [r.loss for r in Trainer(config(steps=2), store, tmp_path / "plain").fit()]
    compiled = [r.loss for r in Trainer(config(steps=2, compiler="eager"), store, tmp_path / "compiled").fit()]
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_a_run_explains_itself(store, pair_folder, tmp_path):
    run = tmp_path / "run"
    trainer = Trainer(
        config(steps=3), store, run, validator=validator(pair_folder), tensorboard=True, facts={"sources": ["x"]}
    )
    list(trainer.fit())
    said = json.loads((run / "config.json").read_text())
    assert {"command", "commit", "versions", "machine", "device", "data", "sources"} <= set(said)
    assert said["data"]["pairs"] == 12
    assert "torch" in said["versions"]
    lines = (run / "log.txt").read_text().splitlines()
    assert lines[0].startswith("step 1: loss ")
    assert lines[-1].startswith("validation 3: max_f ")
    page = (run / "curves.html").read_text()
    assert page.count("<svg") == 8  # loss, three terms, gradient, rate; maxF, MAE
    assert cv2.imread(str(run / "panel.png")).shape == (4 * 64, 3 * 64, 3)
    (events,) = (run / "tensorboard").iterdir()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(events)).Reload()
    assert {"step/loss", "step/lr", "validation/max_f"} <= set(board.Tags()["scalars"])
    assert board.Tags()["images"] == ["panel"]


def test_other_bytes_under_the_same_names_are_other_data(store, tmp_path):
    list(Trainer(config(), store, tmp_path).fit(until=1))
    other = PairStore(store.names, 255 - store.images, store.masks)
    with pytest.raises(CheckpointError, match="trained on 12 other pairs"):
        Trainer(config(), other, tmp_path).resume(tmp_path / "last.pth")


def test_the_authors_preset_is_their_recipe():
    found = TrainConfig(**PRESETS["authors"])
    assert (found.optimizer, found.lr, found.weight_decay, found.schedule) == ("adam", 1e-3, 0.0, "constant")
    assert (found.batch, found.store_size, found.size, found.augment) == (8, 256, 224, "authors")
    assert (found.clip, found.ema, found.warmup, found.loss, found.arch) == (0, 0, 0, "bce+ssim+iou", "basnet")
    preprocess, postprocess = processing_of(found)
    assert (preprocess.scale, preprocess.height, postprocess.stretch) == ("image_max", 256, True)


def test_a_record_that_was_cut_short_does_not_end_the_run(store, pair_folder, tmp_path):
    first = Trainer(config(steps=4), store, tmp_path, validator=validator(pair_folder))
    list(first.fit(until=2))
    log = tmp_path / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    second = Trainer(config(steps=4), store, tmp_path, validator=validator(pair_folder))
    second.resume(tmp_path / "last.pth")
    list(second.fit())
    assert second.step == 4
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()][-1] == 4
    assert (tmp_path / "curves.html").is_file()


def test_bad_validation_pairs_are_skipped_where_asked(pair_folder):
    (pair_folder / "DUTS-TR-Image/disc0.png").write_bytes(b"broken")
    pairs, recipe = find_pairs([pair_folder]), (Preprocess(height=32, width=32), Postprocess())
    with pytest.raises(DataError, match="disc0"):
        Validator(pairs, *recipe)
    assert len(Validator(pairs, *recipe, on_bad="skip")) == 5
    with pytest.raises(DataError, match="none of 1 pairs can be read"):
        Validator(pairs[:1], *recipe, on_bad="skip")


@pytest.mark.parametrize("augment", ["crop", "strong", "authors"])
def test_what_a_mask_leaves_out_is_not_trained(store, tmp_path, augment):
    """Whatever stands there, through cropping and resizing, the weights are the same, bit by bit."""
    ignored = np.zeros_like(store.masks)
    ignored[:, 10:30, 20:41] = 255
    scale = (0.5, 1.3) if augment == "strong" else (0.5, 1.0)
    states = []
    for number, inside in enumerate((0, 255)):
        masks = np.where(ignored > 0, np.uint8(inside), store.masks)
        trainer = Trainer(
            config(augment=augment, crop_scale=scale, steps=2),
            PairStore(store.names, store.images, masks, ignored),
            tmp_path / str(number),
        )
        list(trainer.fit())
        states.append(state_of(trainer))
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_what_a_mask_leaves_out_is_not_scored(pair_folder):
    border = np.zeros((72, 72), np.uint8)
    border[20:50] = 255
    for path in (pair_folder / "DUTS-TR-Mask").iterdir():
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        write_png(path, np.where(border, border, (mask > 0).astype(np.uint8)))
    pairs = find_pairs([pair_folder])
    checks = Validator(pairs, Preprocess(height=64, width=64), Postprocess(), values="labels")
    meter, model = AccuracyMeter(), BASNet(2).eval()
    with torch.no_grad():
        for pair in pairs:
            image, truth = read_pair(pair, "labels")
            mask = model.mask(torch.from_numpy(checks.preprocess.apply(image))[None]).numpy()[0, 0]
            finished = cv2.resize(mask, (72, 72), interpolation=cv2.INTER_LINEAR)
            kept = border == 0
            meter.add(finished[None, kept], truth.mask_HW[None, kept] / np.float32(255))
    scores = checks.scores(model)
    assert (scores.max_f, scores.mae) == pytest.approx((meter.scores().max_f, meter.scores().mae), abs=1e-4)


def test_a_finished_run_goes_on_for_more_steps(store, tmp_path):
    whole = Trainer(config(steps=6, schedule="constant"), store, tmp_path / "whole")
    losses = [r.loss for r in whole.fit()]
    list(Trainer(config(steps=3, schedule="constant"), store, tmp_path / "cut").fit())
    more = Trainer(config(steps=6, schedule="constant", eval_every=2, save_every=5), store, tmp_path / "cut")
    (said,) = more.resume(tmp_path / "cut/last.pth")
    assert said.startswith("resumed at step 3 with 6 steps instead of 3: the learning rate is that of a constant")
    assert [r.loss for r in more.fit()] == losses[3:]
    for name, value in state_of(whole).items():
        assert torch.equal(value, state_of(more)[name]), name
    same = Trainer(config(steps=6, schedule="constant"), store, tmp_path / "cut")
    assert same.resume(tmp_path / "cut/last.pth") == ()
    assert not list(same.fit())
    with pytest.raises(UsageError, match="steps is 5, but the run has done 6"):
        Trainer(config(steps=5, schedule="constant"), store, tmp_path / "cut").resume(tmp_path / "cut/last.pth")


def test_more_steps_follow_the_longer_cosine(store, tmp_path):
    list(Trainer(config(steps=3, warmup=0), store, tmp_path).fit())
    longer = config(steps=6, warmup=0)
    more = Trainer(longer, store, tmp_path)
    more.resume(tmp_path / "last.pth")
    assert [r.lr for r in more.fit()] == [learning_rate(longer, step) for step in (3, 4, 5)]


@pytest.mark.parametrize("arch", ["basnet", "unet", "hed"])
@pytest.mark.parametrize("changes", [{"batch": 1}, {"batch": 2, "accumulate": 2}])
def test_one_picture_that_comes_down_to_one_pixel_is_refused(store, tmp_path, arch, changes):
    with pytest.raises(UsageError, match="one picture of one pixel, which has no variance; raise --batch"):
        Trainer(config(arch=arch, size=32, **changes), store, tmp_path)
    list(Trainer(config(arch=arch, size=64, steps=1, **changes), store, tmp_path).fit())


def test_the_smallest_crop_is_a_pixel(store, tmp_path):
    list(Trainer(config(crop_scale=(0.001, 0.001), steps=1), store, tmp_path).fit())
