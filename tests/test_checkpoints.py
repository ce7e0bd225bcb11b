import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from renal_utils.checkpoints import (
    CheckpointInfo,
    check_rebuildable,
    json_path,
    load_checkpoint,
    read_checkpoint_info,
    save_checkpoint,
)
from renal_utils.models.build import build_model

INFO = CheckpointInfo(
    "unet", {"base_width": 4, "depth": 2}, threshold=0.35, mpp=1.0, metrics={"val_dice": 0.8}
)


def small_unet(**options):
    torch.manual_seed(1)
    return build_model("unet", **{"base_width": 4, "depth": 2, **options})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, small_unet(), INFO)
    return path


def test_loading_gives_the_network_and_what_was_said_of_it(saved):
    model, info = load_checkpoint(saved, expect_model="unet")
    assert info == INFO
    assert not model.training
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(model(images), small_unet().eval()(images), rtol=0, atol=0)


def test_weights_in_channels_last_survive(tmp_path):
    model = small_unet().to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "a.safetensors", model, INFO)
    again, _ = load_checkpoint(tmp_path / "a.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_saving_the_same_weights_twice_gives_the_same_bytes(saved, tmp_path):
    save_checkpoint(tmp_path / "again.safetensors", small_unet(), INFO)
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()
    assert json_path(tmp_path / "again.safetensors").read_bytes() == json_path(saved).read_bytes()


def test_no_checkpoint_file_is_a_pickle(saved):
    assert sorted(p.name for p in saved.parent.iterdir()) == ["best.json", "best.safetensors"]
    json.loads(json_path(saved).read_text())
    load_file(saved)


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.safetensors.*best\.pt"):
        save_checkpoint(tmp_path / "best.pt", small_unet(), INFO)


def test_another_network_than_expected_is_refused_with_both_names(saved):
    with pytest.raises(ValueError, match=r"'unet'.*'attention_unet'"):
        load_checkpoint(saved, expect_model="attention_unet")


def test_truncated_weights_are_refused_with_both_sizes(saved):
    whole = saved.read_bytes()
    saved.write_bytes(whole[:1000])
    with pytest.raises(ValueError, match=rf"1000 bytes.*{len(whole)}.*cut off"):
        load_checkpoint(saved)


def test_weights_of_another_training_are_refused_with_both_hashes(saved):
    tensors = load_file(saved)
    save_file({k: v + 1 for k, v in tensors.items()}, saved)
    expected = json.loads(json_path(saved).read_text())["weights_sha256"][:12]
    with pytest.raises(ValueError, match=rf"SHA-256.*best\.json says {expected}"):
        load_checkpoint(saved)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_missing_half_is_named(saved, suffix):
    saved.with_suffix(suffix).unlink()
    with pytest.raises(FileNotFoundError, match=rf"best\{suffix} is missing.*copy both"):
        load_checkpoint(saved)


def test_a_json_that_is_cut_off_is_named(saved):
    json_path(saved).write_text(json_path(saved).read_text()[:40])
    with pytest.raises(ValueError, match=r"best\.json is not valid JSON"):
        load_checkpoint(saved)


def test_a_json_with_other_fields_is_refused_by_name(saved):
    content = json.loads(json_path(saved).read_text())
    del content["threshold"]
    json_path(saved).write_text(json.dumps({**content, "colour": "red"}))
    with pytest.raises(ValueError, match=r"'threshold'.*missing.*'colour'"):
        read_checkpoint_info(saved)


def test_a_later_format_is_refused_with_both_numbers(saved):
    content = json.loads(json_path(saved).read_text())
    json_path(saved).write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(ValueError, match="format 2, this library reads 1"):
        read_checkpoint_info(saved)


def test_weights_that_do_not_fit_the_named_network_are_refused_with_both_shapes(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, small_unet(), replace(INFO, options={"base_width": 8, "depth": 2}))
    with pytest.raises(ValueError, match=r"a\.safetensors.*\(4, 3, 3, 3\).*\(8, 3, 3, 3\)"):
        load_checkpoint(path)


def test_an_info_by_which_the_network_could_not_be_built_again_is_refused():
    check_rebuildable(small_unet(), INFO)
    with pytest.raises(ValueError, match="encoder"):
        check_rebuildable(small_unet(), replace(INFO, options={"base_width": 4, "depth": 3}))


def test_an_unknown_network_lists_the_known_ones(saved):
    content = json.loads(json_path(saved).read_text())
    json_path(saved).write_text(json.dumps({**content, "model": "unetx"}))
    with pytest.raises(ValueError, match=r"'unetx'.*unet"):
        load_checkpoint(saved)


def test_a_full_disk_leaves_the_checkpoint_before_it_whole(small_disk):
    path = small_disk(1) / "best.safetensors"
    save_checkpoint(path, small_unet(), INFO)
    before = path.read_bytes(), json_path(path).read_bytes()
    larger = small_unet(base_width=48)
    with pytest.raises(OSError, match=r"could not write .*best\.safetensors.*intact.*free some"):
        save_checkpoint(path, larger, replace(INFO, options={"base_width": 48, "depth": 2}))
    assert (path.read_bytes(), json_path(path).read_bytes()) == before
    assert len(list(path.parent.iterdir())) == 2
    load_checkpoint(path)


def test_a_disk_with_room_for_the_weights_but_not_the_json_changes_neither(small_disk):
    path = small_disk(1) / "best.safetensors"
    save_checkpoint(path, small_unet(), INFO)
    before = path.read_bytes(), json_path(path).read_bytes()
    large = replace(INFO, provenance={"note": "x" * 1_000_000})
    with pytest.raises(OSError, match=r"could not write .*best\.safetensors"):
        save_checkpoint(path, small_unet(base_width=8), large)
    assert (path.read_bytes(), json_path(path).read_bytes()) == before


def test_a_network_that_started_from_fetched_weights_is_read_without_fetching_them(
    tmp_path, monkeypatch
):
    model = build_model("linknet_mobilenet_v2")
    info = CheckpointInfo("linknet_mobilenet_v2", {"encoder_weights": "imagenet"})
    save_checkpoint(tmp_path / "net.safetensors", model, info)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    read, told = load_checkpoint(tmp_path / "net.safetensors")
    assert told.options == {"encoder_weights": "imagenet"}
    for key, value in model.state_dict().items():
        assert torch.equal(read.state_dict()[key], value), key
