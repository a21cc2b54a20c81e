"""What is measured, in the order of its worth: tasks, which are one function each, and cases, in which contenders take turns.

Nothing here imports more than Python's own library; the smoke plan is the same with tiny models, and is for the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

TORCH = ("eager, channels_last", "CUDA graph")
COMPILED = ("torch.compile, reduce-overhead", "torch.compile, max-autotune-no-cudagraphs")
ENGINES = ("ONNX Runtime CUDA", "ONNX Runtime CUDA, CUDA graph", "TensorRT-RTX", "TensorRT")
REFERENCE = "eager, channels_last"
"""The contender that every ratio is to, in every case."""
ALL_MASKS = ("baked", "masked", "masked, all ones", "masked, another mask each row")
TWO = ("baked", "masked")
AMPLE_S = 1500.0
"""Time limit of anything in the smoke plan."""


@dataclass(frozen=True)
class Task:
    """One function of `tasks.py`, in a process of its own."""

    name: str
    seconds: float
    """Its time limit."""
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    """Names of tasks whose files it reads."""
    aside: bool = False
    """Whether it runs beside others: it prepares files and takes no times of the GPU."""

    @property
    def key(self) -> str:
        """Name of its result."""
        return " ".join((self.name, *self.arguments))


@dataclass(frozen=True)
class Case:
    """A UNet in one type at one size, timed by contenders in turns, each in a process of its own."""

    model: str
    dtype: str
    batch: int
    """Pictures; the UNet's rows are twice as many."""
    latents: int
    """Height and width."""
    contenders: tuple[str, ...]
    variants: tuple[str, ...] = TWO
    seconds: float = 90.0
    """Time limit of a contender until it is warm."""
    group: str = ""

    @property
    def key(self) -> str:
        """Name of its result."""
        return f"{self.model} {self.dtype} batch {self.batch} latents {self.latents} {self.group}".strip()

    @property
    def needs(self) -> tuple[str, ...]:
        """Tasks without whose files no contender runs."""
        export = (f"export {self.model} {self.dtype}",) if set(self.contenders) & set(ENGINES) else ()
        return (f"weights {self.model}", *export)


def full_plan() -> list[Task | Case]:
    """The plan for a GPU."""
    sd, xl = (Case("sd15", "fp16", 1, 64, TORCH), Case("sdxl", "fp16", 1, 128, TORCH))
    engines, compiled, autotuned = (*TORCH, *ENGINES), (TORCH[0], COMPILED[0]), (TORCH[0], COMPILED[1])
    brain = [replace(case, dtype="bf16") for case in (sd, xl)]
    large, small = replace(sd, latents=128), replace(xl, latents=64)
    return [
        Task("card", 60),
        *(Task("weights", 150, (model,), aside=True) for model in ("sd15", "sdxl")),
        *(Task("export", 300, (model, "fp16"), (f"weights {model}",), aside=True) for model in ("sd15", "sdxl")),
        Task("limits", 120, aside=True),
        replace(sd, contenders=("eager", *TORCH), variants=ALL_MASKS),
        replace(sd, batch=4, variants=ALL_MASKS),
        xl,
        Task("decisions", 120),
        Task("answer", 120, ("sd15",), ("export sd15 fp16",)),
        Task("profile", 60, ("sdxl",), ("weights sdxl",)),
        Task("localization", 120, ("sd15",), ("weights sd15",)),
        replace(sd, contenders=engines, seconds=150, group="engines"),
        Task("build", 200, (), ("export sd15 fp16",)),
        replace(xl, contenders=engines, seconds=200, group="engines"),
        replace(sd, contenders=compiled, seconds=150, group="compiled"),
        *brain,
        replace(xl, batch=4),
        replace(sd, batch=4, contenders=engines, seconds=150, group="engines"),
        replace(xl, contenders=compiled, seconds=200, group="compiled"),
        *(replace(case, batch=batch) for case in (large, small) for batch in (1, 4)),
        replace(xl, batch=4, contenders=engines, seconds=200, group="engines"),
        replace(sd, contenders=autotuned, seconds=300, group="autotuned"),
        *(replace(case, batch=4) for case in brain),
        *(replace(case, dtype="bf16", batch=batch) for case in (large, small) for batch in (1, 4)),
        Task("export", 300, ("sd15", "bf16"), ("weights sd15",), aside=True),
        replace(brain[0], contenders=engines, seconds=150, group="engines"),
        replace(xl, contenders=autotuned, seconds=400, group="autotuned"),
    ]


def smoke_plan() -> list[Task | Case]:
    """The same for a CPU: every task, and of each kind of case one, with models of the same kinds a thousand times smaller.

    No time limit of it is ever reached on a machine that works, however slow: limits are for a GPU that is lent for minutes.
    """
    sd, ample = Case("sd15", "fp32", 1, 8, TORCH, seconds=AMPLE_S), AMPLE_S
    return [
        Task("card", ample),
        *(Task("weights", ample, (model,), aside=True) for model in ("sd15", "sdxl")),
        Task("export", ample, ("sd15", "fp32"), ("weights sd15",), aside=True),
        Task("limits", ample, aside=True),
        replace(sd, contenders=("eager", *TORCH), variants=ALL_MASKS),
        replace(sd, model="sdxl"),
        Task("decisions", ample),
        Task("build", ample),
        Task("localization", ample, ("sd15",), ("weights sd15",)),
        Task("profile", ample, ("sdxl",), ("weights sdxl",)),
        Task("answer", ample, ("sd15",), ("export sd15 fp32",)),
        replace(sd, contenders=(TORCH[0], *ENGINES), group="engines"),
    ]
