"""What a build takes: counts as torch counts them, estimates near what was measured, verdicts and remedies from numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.release._footprint import Footprint, Need, Part, check_memory, estimate, fitted, needs_of, parts
from nemo_edge.system.errors import InputError

GB = 10**9
SD15 = (
    Part(name="unet", parameters=859_520_964, exported=859_520_964, dtypes=("F32",)),
    Part(name="vae", parameters=83_653_863, exported=49_490_199, dtypes=("F32",)),
    Part(name="text_encoder", parameters=123_060_480, exported=123_060_480, dtypes=("F32",)),
)
SDXL = (
    Part(name="unet", parameters=2_567_463_684, exported=2_567_463_684, dtypes=("F16",)),
    Part(name="vae", parameters=83_653_863, exported=49_490_199, dtypes=("F16",)),
    Part(name="text_encoder", parameters=123_060_480, exported=123_060_480, dtypes=("F16",)),
    Part(name="text_encoder_2", parameters=694_659_840, exported=694_659_840, dtypes=("F16",)),
)


def needs(found: tuple[Part, ...], pixels: int, memory: float = 1e15, disk: float = 1e15) -> dict[tuple[str, int], Need]:
    return {(n.dtype, n.variants): n for n in needs_of(found, pixels, int(memory), int(disk))}


def test_parameters_are_those_torch_counts(toy: Checkpoint, toy_folder: Path) -> None:
    found = {part.name: part for part in parts(str(toy_folder))}
    modules = {"unet": toy.unet, "vae": toy.vae, "text_encoder": toy.text_encoders[0]}
    assert {name: part.parameters for name, part in found.items()} == {
        n: sum(p.numel() for p in m.parameters()) for n, m in modules.items()
    }
    decoder = [p for name, p in toy.vae.named_parameters() if name.startswith(("decoder.", "post_quant_conv."))]
    assert found["vae"].exported == sum(p.numel() for p in decoder)
    assert all(part.dtypes == ("F32",) for part in found.values())


def test_a_second_text_encoder_makes_it_xl(toy_sdxl: Checkpoint, tmp_path: Path) -> None:
    found = estimate(toy_sdxl.source, tmp_path)
    assert (found.family, [part.name for part in found.parts]) == ("sdxl", ["unet", "vae", "text_encoder", "text_encoder_2"])
    assert found.parts[3].parameters == sum(p.numel() for p in toy_sdxl.text_encoders[1].parameters())
    assert Footprint.model_validate_json(found.model_dump_json()) == found


def test_a_single_file_is_read_by_its_prefixes(tmp_path: Path) -> None:
    half = np.zeros((3, 2), np.float16)
    keys = (
        "model.diffusion_model.out.weight",
        "first_stage_model.decoder.a",
        "first_stage_model.encoder.a",
        "conditioner.embedders.1.a",
        "x.y",
    )
    save_file(dict.fromkeys(keys, half), tmp_path / "xl.safetensors")
    found = {part.name: (part.parameters, part.exported, part.dtypes) for part in parts(str(tmp_path / "xl.safetensors"))}
    assert found == {"unet": (6, 6, ("F16",)), "vae": (12, 6, ("F16",)), "text_encoder_2": (6, 6, ("F16",))}


def test_of_several_files_those_diffusers_reads_are_counted(tmp_path: Path) -> None:
    unet = tmp_path / "unet"
    unet.mkdir()
    for name, size in {".fp16": 5, ".non_ema": 5, "-00001-of-00002": 3, "-00002-of-00002": 4}.items():
        save_file({name: np.zeros(size, np.float32)}, unet / f"diffusion_pytorch_model{name}.safetensors")
    assert parts(str(tmp_path))[0].parameters == 7
    save_file({"whole": np.zeros(7, np.float32)}, unet / "diffusion_pytorch_model.safetensors")
    assert parts(str(tmp_path))[0].parameters == 7
    for path in unet.iterdir():
        path.unlink()
    save_file({"half": np.zeros(9, np.float16)}, unet / "diffusion_pytorch_model.fp16.safetensors")
    assert (parts(str(tmp_path))[0].parameters, parts(str(tmp_path))[0].dtypes) == (9, ("F16",))


def test_reading_headers_loads_no_weights(tmp_path: Path) -> None:
    """A file of 3.4 GB of which only the header is on the disk."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [859_520_964], "data_offsets": [0, 859_520_964 * 4]}}).encode()
    (tmp_path / "unet").mkdir()
    with (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 859_520_964 * 4)
    found = estimate(str(tmp_path), tmp_path / "a" / "b")
    assert found.parts[0].parameters == 859_520_964
    assert found.output == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none", None, "does not exist"),
        ("a.ckpt", b"pickle", "not a .safetensors file"),
        ("a.safetensors", b"not a header", "cannot be read"),
        ("folder", None, "holds no UNet as safetensors"),
    ],
)
def test_what_holds_no_headers_is_refused(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    elif name == "folder":
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=reason):
        parts(str(tmp_path / name))


def test_estimates_are_near_what_was_measured() -> None:
    """Export of Stable Diffusion 1.5's UNet alone, and of whole models, as full_size.json has it; the files 3.44 and 1.72 GB."""
    results = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "full_size.json").read_text())
    measured, builds = results["exports"], results["builds"]
    found = needs(SD15[:1], 512 * 512)
    for name, whole, pixels in (("sd15", SD15, 512 * 512), ("sdxl", SDXL, 1024 * 1024)):
        assert needs(whole, pixels)["fp16", 1].export_bytes == pytest.approx(builds[name]["build"]["peak_mb"] * 1e6, rel=0.1)
    assert found["fp32", 1].export_bytes == pytest.approx(measured["nemo-edge"]["peak_mb"] * 1e6, rel=0.1)
    assert found["fp16", 1].export_bytes == pytest.approx(measured["nemo-edge, fp16"]["peak_mb"] * 1e6, rel=0.1)
    assert found["fp32", 1].disk_bytes == pytest.approx(2 * 3.44 * GB, rel=0.05)
    assert found["fp16", 1].disk_bytes == pytest.approx(2 * 1.72 * GB, rel=0.1)


def test_more_of_anything_takes_more() -> None:
    small, large, tall = needs(SD15, 512 * 512), needs(SDXL, 1024 * 1024), needs(SD15, 768 * 768)
    for key, need in small.items():
        assert large[key].export_bytes > 2 * need.export_bytes
        assert large[key].disk_bytes > 2 * need.disk_bytes
        assert tall[key].measure_bytes > need.measure_bytes
        assert need.ranges_bytes < min(large[key].ranges_bytes, tall[key].ranges_bytes)
    assert small["fp32", 2].disk_bytes - small["fp32", 1].disk_bytes == 2 * 4 * SD15[0].exported
    assert large["fp16", 2].disk_bytes == pytest.approx(2 * 2 * (2 * 2.567 + 0.867) * GB, rel=0.05)


def test_what_fits_and_the_smallest_change_that_does(tmp_path: Path) -> None:
    def verdict(memory: float, disk: float = 1e15) -> Footprint:
        all_needs = needs_of(SD15, 512 * 512, int(memory), int(disk))
        return fitted("m", "sd", SD15, all_needs, int(memory), int(disk), tmp_path)

    by_settings = needs(SD15, 512 * 512)
    assert verdict(1e12).fits
    assert verdict(1e12).remedy == ""
    one = verdict(by_settings["fp32", 1].memory_bytes + 1)
    assert not one.fits
    assert one.remedy == 'in the recipe: export.variants = ["masked"]'
    assert verdict(1e12, by_settings["fp16", 2].disk_bytes + 1).remedy == 'in the recipe: export.dtype = "fp16"'
    assert "use a machine with" in verdict(GB).remedy
    assert f"in {tmp_path}" in verdict(1e12, GB).remedy
    assert "use a machine with" not in verdict(1e12, GB).remedy


def test_counting_needs_no_torch(tmp_path: Path, toy_folder: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from nemo_edge.release._footprint import estimate
estimate({str(toy_folder)!r}, Path({str(tmp_path)!r}))
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_too_little_memory_is_refused_with_what_it_takes_and_what_is_free(toy_folder: Path, tmp_path: Path) -> None:
    def on(memory: int) -> Footprint:
        return estimate(str(toy_folder), tmp_path).model_copy(update={"memory_available_bytes": memory})

    check_memory(on(10**12), "fp32", compiled=True)
    with pytest.raises(
        InputError, match=r"exporting this model takes about \d+\.\d GB of memory, and 0\.1 GB are free: .*dtype = \"fp16\"$"
    ):
        check_memory(on(10**8), "fp32", compiled=False)
    with pytest.raises(InputError, match=r"GB of memory, and 0\.1 GB are free: use a larger machine$"):
        check_memory(on(10**8), "fp16", compiled=True)
    needs = [need.model_copy(update={"ranges_bytes": 10**11}) for need in on(0).needs]
    wide = on(10**10).model_copy(update={"needs": needs})
    check_memory(wide, "fp32", compiled=False)
    with pytest.raises(InputError, match=r"^finding the ranges .* takes about 100\.0 GB .*: .*, or set quantization.scheme"):
        check_memory(wide, "fp32", compiled=False, ranges=True)
