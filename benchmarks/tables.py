"""Turns `benchmarks/results/*.json` into the tables of README and docs, and the docs' figures.

    python -m benchmarks.tables [--check]

With `--check` nothing is written; exit code 1 when a table or a figure is not what the JSON says.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.cpu.attack_table import attack_table, draw_attack, levels_table
from benchmarks.cpu.evidence_table import adherence_table, evidence_table
from benchmarks.cpu.figures import draw_detection, draw_fidelity, draw_latency, draw_localization
from benchmarks.cpu.latency_table import few_steps_table, latency_table
from benchmarks.front import figures, headline, takes
from benchmarks.gpu.table import draw_gpu, gpu_table
from benchmarks.shared import RESULTS, ROOT, kept, machine_of
from nemo_edge.measure.bounds import at_most

README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
_SOURCE = "nemo-edge source"
_VARIANTS = ("variants", "memorized", "leaking_before", "leaking_after")

Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when README or figures are not up to date")
    check = parser.parse_args().check
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    made = texts | {}
    for name, (lines, sources) in {**{name: (table, (name,)) for name, table in TABLES.items()}, **JOINED}.items():
        page = page_of(name, texts)
        made[page] = put(made[page], name, lines(*map(load, sources)))
    stale = [f"{name} ({path.name})" for name, (path, _) in FIGURES.items() if stamp_of(path) != digest(name)]
    if check:
        problems = [*(f"the tables of {page.name}" for page in PAGES if made[page] != texts[page]), *stale]
        if problems:
            sys.exit(f"not what benchmarks/results say: {', '.join(problems)}; run `python -m benchmarks.tables`")
        return
    for page, text in made.items():
        page.write_text(text, encoding="utf-8")
    for name, (path, draw) in FIGURES.items():
        figure = draw(load(name))
        figure.savefig(path, dpi=110, metadata={_SOURCE: digest(name)})


def load(name: str) -> Result:
    found = kept(name)
    if not found:
        sys.exit(f"{RESULTS / name}.json is not there: CONTRIBUTING.md says how it is measured")
    return found


def digest(name: str) -> str:
    return hashlib.sha256((RESULTS / f"{name}.json").read_bytes()).hexdigest()


def stamp_of(path: Path) -> str | None:
    if not path.is_file():
        return None
    with Image.open(path) as image:
        return image.info.get(_SOURCE)


def marks(name: str) -> tuple[str, str]:
    """Between which a table stands."""
    return f"<!-- {name}: written by benchmarks/tables.py -->", f"<!-- end of {name} -->"


def page_of(name: str, texts: Mapping[Path, str]) -> Path:
    """The one page with the marks of a table."""
    found = [page for page, text in texts.items() if marks(name)[0] in text]
    if len(found) != 1:
        sys.exit(f"{len(found)} pages have marks of the table {name}, where one should: {marks(name)[0]}")
    return found[0]


def put(text: str, name: str, lines: list[str]) -> str:
    """Replace what stands between the marks of a table."""
    begin, end = marks(name)
    found, changed = re.subn(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: "\n".join([begin, *lines, end]), text, flags=re.DOTALL)
    if changed != 1:
        sys.exit(f"no page has both marks of the table {name}: {begin} … {end}")
    return found


def demo_table(found: Result) -> list[str]:
    prompts, variants = len(found["prompts"]), found["variants"]

    def row(name: str, cell: Callable[[Result], str]) -> str:
        return f"| {name} | " + " | ".join(cell(v) for v in variants.values()) + " |"

    def seeds(v: Result, counts: list[int]) -> str:
        most, drawn = max(counts), v["seeds"]
        bound = f" ({at_most(most, drawn)} of a caption's)" if most < drawn else ""
        return f"{sum(counts)} of {len(counts) * drawn} pictures{bound}"

    cost = f", {found['wall_s']:.0f} s, {found['peak_memory_gib']} GiB at the most" if "wall_s" in found else ""
    planted = found.get("per_prompt_planted")
    own = f", {sum(planted)} of them among those their memories were trained into" if planted else ""
    source = "demo" if planted else "repeated"
    return [
        f"| | {' | '.join(variants)} |",
        "|---|" + "---|" * len(variants),
        row("training pictures given back, before", lambda v: seeds(v, v["copies_before"])),
        row("… after", lambda v: seeds(v, v["copies_after"])),
        row("… another memorized picture instead", lambda v: seeds(v, v["others_after"])),
        row("… random neurons silenced instead", lambda v: seeds(v, v["copies_random"])),
        row(
            f"highest memorization score (τ = {found['threshold']:.2f})",
            lambda v: f"{max(v['score_before']):.2f} → {max(v['score_after']):.2f}",
        ),
        row("prompts at or below τ", lambda v: f"{v['below_threshold']} of {prompts}"),
        row("general pictures, mean drift (1 − SSIM)", lambda v: f"{v['general_drift']:.3f}"),
        row("… their diversity (1 − SSIM over seeds)", lambda v: f"{v['diversity'][0]:.3f} → {v['diversity'][1]:.3f}"),
        row("engine against eager, whole trajectory", lambda v: f"{v['engine_error']:.0e}"),
        row("mitigation on the engine against eager's", lambda v: f"{v['agreement']:.0e}"),
        "",
        *levels_table(found.get("attack")),
        f"{found['neurons']} neurons silenced for {prompts} prompts{own}; measured on {machine_of(found)}{cost} "
        f"(`benchmarks/results/{source}.json`).",
    ]


def fidelity_table(found: Result) -> list[str]:
    lines = ["| engine | type | opset | largest error, relative | picture, of 255 levels | SSIM |", "|---|---|---|---|---|---|"]
    for row in found["engines"]:
        numbers = f"{row['largest_error']:.0e} | {row['picture_levels']} | {row['ssim']:.5f}"
        lines.append(f"| {row['variant']} | {row['dtype']} | {row['opset']} | {numbers} |")
    ones = "bit for bit the same" if found["mask_of_ones"] == 0 else f"{found['mask_of_ones']:.0e} apart"
    return [
        *lines,
        "",
        "Against eager PyTorch in fp32 with the same neurons silenced, along the whole trajectory of four prompts. The masked engine "
        f"with a mask of ones and the unmitigated engine are {ones}. Measured on {machine_of(found)} (`benchmarks/results/fidelity.json`).",
    ]


def full_size_table(found: Result) -> list[str]:
    lines = [
        "| model, fp16, masked | export, s | compile, s | whole build, s | peak memory, GB | UNet's plan, GB | error of the fp16 UNet |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in found["builds"].items():
        compiled = sum(plan["build_s"] for plan in row["plans"].values())
        size = row["plans"]["unet_masked"]["size_bytes"] / 1e9
        lines.append(
            f"| {name} | {row['export_s']} | {compiled:.0f} | {row['build']['seconds']:.0f} | {row['build']['peak_mb'] / 1e3:.1f} "
            f"| {size:.2f} | {row['export']['unet']['largest_error']:.0e} |"
        )
    kept = sorted(
        {f"{name}'s {part}" for name, row in found["builds"].items() for part, e in row["export"].items() if e["dtype"] == "fp32"}
    )
    lines += [
        "",
        f"`nemo-edge build` with `--random-weights`, for sm86 and sm89 in one plan, 1 to 4 pictures; {machine_of(found)}, no GPU. "
        "Memory is that of all processes together." + (f" In fp32: {', '.join(kept)}." if kept else ""),
        "",
        "| UNet of Stable Diffusion 1.5 | s | peak memory, GB | on disk, GB |",
        "|---|---|---|---|",
    ]
    names = {
        "nemo-edge": "nemo-edge, fp32, compared with eager",
        "nemo-edge, fp16": "nemo-edge, fp16, with its text encoder and the trajectory",
        "optimum-onnx": "optimum-onnx, fp32, exported only",
    }
    for name, row in found["exports"].items():
        lines.append(f"| {names[name]} | {row['seconds']:.0f} | {row['peak_mb'] / 1e3:.1f} | {row['size_bytes'] / 1e9:.2f} |")
    error = found["exports"]["nemo-edge"]["at_32_latents"]
    lines += [
        "",
        f"All from the same weights, each in a process of its own. ONNX Runtime against eager at 32 × 32 latents: "
        f"{error['largest_error'] / max(error['largest_value'], 1.0):.0e} (`benchmarks/results/full_size.json`).",
        "",
        *compiled_again(found),
    ]
    return lines


def compiled_again(found: Result) -> list[str]:
    """Whether plans are the same a second time, and how long a finished bundle takes for other neurons."""
    same = [name for name, differs in found["again"].items() if not differs["bytes"]]
    names = [f"{name}'s in {differs['bytes']} bytes" for name, differs in found["again"].items() if differs["bytes"]]
    outside = sum(differs["outside_names"] for differs in found["again"].values())
    where = "all of them digits in TensorRT's names of internal tensors" if not outside else f"{outside} of them outside of internal names"
    lines = [f"Compiled a second time, the plans of {', '.join(same) or 'no part'} were the same bytes" + ("" if names else ".")]
    lines[0] += f"; {', '.join(names)} differed, {where}." if names else ""
    return [*lines, "", f"Other neurons in the finished baked bundle of Stable Diffusion 1.5: {found['rebake']['seconds']:.1f} s."]


def localization_table(found: Result) -> list[str]:
    captions, size = found["captions"], found["full_size"]
    count, plain = len(captions["prompts"]), captions["samples"]["reference"]
    seconds = {name: sorted(own)[len(own) // 2] for name, own in captions["seconds"].items()}
    lines = ["| | s | times faster | samples of the UNet | same neurons |", "|---|---|---|---|---|"]
    lines.append(f"| the official code's procedure | {seconds['reference']:.1f} | 1 | {plain} | |")
    for name in ("paper", "fast"):
        ratio, samples = captions["times_faster"][name], captions["samples"][name]
        faster = f"{ratio['median']:.1f} ({ratio['low']:.1f}–{ratio['high']:.1f})"
        same = f"{captions['same_neurons'][name]} of {count}"
        lines.append(f"| mode `{name}` | {seconds[name]:.1f} | {faster} | {samples} ({samples / plain:.1%}) | {same} |")
    fast = captions["fast"]
    sizes = [sum(row[which] for row in fast) for which in ("neurons", "paper_neurons")]
    overlap, minimal = sum(row["jaccard"] for row in fast) / count, sum(row["minimal"] for row in fast)
    shares, median = list(size["share"].values()), size["median_prompt"]
    return [
        *lines,
        "",
        f"All {count} memorized captions of the demo, {found['threads']} threads, in turns; scores differ by "
        f"{captions['score_difference']:.0e} at the most. The sets of `fast` have {sizes[0]} neurons in all, those of `paper` {sizes[1]} "
        f"(mean Jaccard index {overlap:.2f}); {minimal} of {count} are 1-minimal and below the threshold by the reference's own scores.",
        "",
        f"At Stable Diffusion 1.5's size a row of the UNet takes {size['seconds_per_row']:.1f} s here. An evaluation that goes on from "
        f"what was kept takes {shares[0]:.0%} of that where the first value layer changes, {shares[3]:.0%} at the fourth and "
        f"{shares[-1]:.0%} at the mid block; {size['kept_bytes_per_seed'] / 1e6:.0f} MB are kept a seed. The median prompt of the paper (θ "
        f"lowered {median['initial_steps']} times, {median['candidates']} candidates) would take {median['paper_s'] / 60:.0f} minutes in "
        f"mode `paper`, and {median['reference_s'] / 60:.0f} by the official procedure. Measured on {machine_of(found)} "
        "(`benchmarks/results/localization.json`).",
    ]


def paraphrases_table(found: Result) -> list[str]:
    lines = ["| | variants | memorized too | leaked with the captions' neurons | leak now | neurons | samples of the UNet |"]
    lines.append("|---|---|---|---|---|---|---|")
    for mode in ("paper", "fast"):
        own = found[mode]
        counts = [sum(g[w] if isinstance(g[w], int) else len(g[w]) for g in own["groups"]) for w in _VARIANTS]
        neurons, samples = own["neurons"], own["samples"]
        cells = [*map(str, counts), f"{neurons['own']} → {neurons['groups']}", f"{samples['captions']} + {samples['groups']}"]
        lines.append(f"| mode `{mode}` | {' | '.join(cells)} |")
    general = found["paper"]["general_score"]
    return [
        *lines,
        "",
        f"All {len(found['paper']['groups'])} memorized captions of the demo, {found['asked']} variants asked of each (short captions have "
        f"fewer). Of general prompts {general['own']:.4f} of the score stays with the captions' neurons silenced, "
        f"{general['groups']:.4f} with the variants' too. "
        f"Measured on {machine_of(found)} (`benchmarks/results/paraphrases.json`).",
    ]


def detection_table(found: Result) -> list[str]:
    own, size = found["demo"], found["full_size"]
    lines = ["| detector | rows of the UNet a prompt | AUROC (95 %) | TPR at 1 % FPR | AUROC in the literature |", "|---|---|---|---|---|"]
    for each in own["rocs"]:
        auroc = f"{each['auroc']:.4f} ({each['low']:.4f}–{each['high']:.4f})"
        lines.append(f"| {each['detector']} | {each['rows']} | {auroc} | {each['tpr_at_1']:.3f} | {_literature(each['detector'])} |")
    early, late = own["memory_mib"].items()
    above, general = own["above"], own["prompts"] - own["rocs"][0]["memorized"]
    return [
        *lines,
        "",
        f"{own['prompts']:,} captions of the demo, {own['rocs'][0]['memorized']} of them memorized, in {own['seconds']:.0f} s with "
        f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}; above τ are "
        f"{above['memorized']} of the memorized and {above['general']} of the {general:,} others. The UNet's forwards took "
        f"{own['unet_share']:.0%} of the time; at Stable Diffusion 1.5's size they take {size['unet_share']:.2%}. Memory: "
        f"{early[1]:.0f} MiB after {early[0]} prompts, {late[1]:.0f} MiB after {late[0]}. Measured on {machine_of(found)} "
        "(`benchmarks/results/detection.json`).",
    ]


def serving_table(found: Result) -> list[str]:
    over, update = found["overhead"], found["update"]
    ratio = over["masked_over_baked"]
    put, drawn = ({name: statistics.median(times[i] for times in update[f"{name}_s"]) for name in ("library", "command")} for i in (0, 1))
    return [
        "| clients at once | " + " | ".join(found["clients"]) + " |",
        "|---|" + "---|" * len(found["clients"]),
        "| pictures a second | " + " | ".join(f"{rate:.2f}" for rate in found["clients"].values()) + " |",
        "",
        f"The demo's pictures of {over['steps'][1]} steps through a server on this machine. The library takes {over['library_s']:.2f} s "
        f"a picture, the server {1000 * over['more_per_picture_s']:.0f} ms more, {1000 * over['more_per_step_s']:.1f} ms of it a step. A "
        f"masked picture takes {ratio['value']:.3f} ({ratio['low']:.3f}–{ratio['high']:.3f}) times as long as a baked one. From the start "
        f"of `ship --masks-only` to the first picture with the new neurons: {drawn['command']:.1f} s, of which the command takes "
        f"{put['command']:.1f} s and the picture the rest; the library needs {1000 * put['library']:.0f} ms in its place. Measured on "
        f"{machine_of(found)} (`benchmarks/results/serving.json`).",
    ]


def policies_table(found: Result) -> list[str]:
    def row(name: str, trigger: Result) -> str:
        missed, memorized = len(trigger["missed"]), trigger["memorized_paraphrases"]
        held, leaking = f"{memorized - missed} of {memorized}", trigger["leaking"]
        back = f"{len(leaking['triggered'])}, with `always` {len(leaking['always'])}"
        return f"| {name} | {held} | {back} | {trigger['silenced_general']} of {trigger['general']:,} | {trigger['threshold']:.2f} |"

    embeddings = found["embeddings"]
    others = ", ".join(f"{value:.3f} of the {name}" for name, value in embeddings.items() if not name.startswith("mean over all"))
    return [
        "| the trigger knows | memorized paraphrases whose neurons are silenced | … that still bring a memory back | "
        "general captions that trigger | threshold |",
        "|---|---|---|---|---|",
        row("the memorized captions", found["triggers"]["without variants"]),
        row("their memorized variants too", found["triggers"]["with variants"]),
        "",
        f"The demo's {found['captions']} captions, those of their {found['paraphrases']} variants that are memorized too (the second line "
        f"knows these very ones), and general captions that it was not calibrated with. Missed by the first line: "
        f"{', '.join(found['triggers']['without variants']['missed']) or 'none'}. A memory is back where the memorization score that is "
        "left is above τ. Paraphrases against general captions, by the cosine to the captions: "
        f"AUROC {embeddings['mean over all tokens']:.3f}; {others}. Measured on {machine_of(found)} "
        "(`benchmarks/results/policies.json`).",
    ]


def standalone_table(found: Result) -> list[str]:
    full = next(row for row in found["environments"] if row["extra"] == "build")

    def row(each: Result) -> str:
        ratio = f" ({each['seconds'] / full['seconds']:.2f})" if each is not full else ""
        return f"| `nemo-edge[{each['extra']}]` | {_NAMES[each['backend']]} | {each['size_mb']:,} MB | {each['seconds']:.1f} s{ratio} |"

    others = [row for row in found["environments"] if row is not full]
    return [
        "| environment | draws with | its packages | from the command to the demo's first picture |",
        "|---|---|---|---|",
        *(row(each) for each in (*others, full)),
        "",
        "Medians of commands in turns, each in a new process; in brackets as a share of the last line's, whose environment here has the "
        f"tests' packages too. The pictures differ by {max(row['largest_difference'] for row in others)} of 255 grey levels at the most. "
        f"Measured on {machine_of(found)} (`benchmarks/results/standalone.json`).",
    ]


def _literature(detector: str) -> str:
    if detector.startswith("MS-SSIM"):
        return "0.98 (Hintersdorf et al. 2024, App. B.4)"
    given = "0.976" if detector.endswith("1 latent") else "0.992 of 4 latents"
    return f"{given}, at the first step (Wen et al.'s detector as Jeon et al. 2025 measured it)"


TABLES: dict[str, Callable[[Result], list[str]]] = {
    "demo": demo_table,
    "repeated": demo_table,
    "adherence": adherence_table,
    "attack": attack_table,
    "latency": latency_table,
    "few_steps": few_steps_table,
    "fidelity": fidelity_table,
    "full_size": full_size_table,
    "localization": localization_table,
    "paraphrases": paraphrases_table,
    "detection": detection_table,
    "nvidia-h200": gpu_table,
    "serving": serving_table,
    "policies": policies_table,
    "standalone": standalone_table,
}
JOINED: dict[str, tuple[Callable[..., list[str]], tuple[str, ...]]] = {
    "evidence": (evidence_table, ("demo", "repeated")),
    "headline": (headline, ("demo", "repeated")),
    "install": (takes, ("demo", "full_size", "localization", "standalone")),
    "figures": (figures, ("demo", "latency", "standalone")),
}
_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
FIGURES: dict[str, tuple[Path, Callable[[Result], Any]]] = {
    "attack": (ROOT / "docs" / "attack.png", draw_attack),
    "latency": (ROOT / "docs" / "latency.png", draw_latency),
    "fidelity": (ROOT / "docs" / "fidelity.png", draw_fidelity),
    "localization": (ROOT / "docs" / "localization.png", draw_localization),
    "detection": (ROOT / "docs" / "detection.png", draw_detection),
    "nvidia-h200": (ROOT / "docs" / "nvidia-h200.png", draw_gpu),
}


if __name__ == "__main__":
    main()
