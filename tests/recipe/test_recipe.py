"""Recipes: defaults, paths, and complaints that name the right key."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_edge.recipe.recipe import Recipe, SettingError, anchored, from_keywords, from_options, load_recipe, portable, with_random_weights
from nemo_edge.recipe.settings import LatencySettings, LocalizationSettings
from nemo_edge.recipe.targets import FLAVOUR_OF, EngineSettings, ProfileSettings
from nemo_edge.system.errors import InputError

Write = Callable[[str, str | bytes], Path]

HEAD = 'name = "x"\noutput = "out/x"\n'
TABLES = '[checkpoint]\npath = "./model"\n[prompts]\nmemorized = "m.csv"\ngeneral = "/data/g.txt"\n'


def test_what_is_not_given_has_the_papers_values(written: Write) -> None:
    recipe = load_recipe(written("r.toml", HEAD + TABLES))
    method = recipe.localization
    assert (method.samples, method.steps, method.seed) == (10, 50, 1)
    assert (method.initial_theta, method.theta_step, method.min_theta, method.initial_k) == (5.0, 0.25, 1.0, 0)
    assert (method.mode, method.layers) == ("paper", "paper")
    assert recipe.export.variants == ("baked", "masked")
    assert recipe.calibration.threshold is None
    assert not recipe.checkpoint.allow_pickle


def test_relative_paths_are_relative_to_the_recipe(written: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written("engines/r.toml", HEAD + TABLES)
    monkeypatch.chdir("/")
    recipe = load_recipe(path)
    assert recipe.output == tmp_path / "engines/out/x"
    assert recipe.prompts.memorized == tmp_path / "engines/m.csv"
    assert recipe.prompts.general == Path("/data/g.txt")
    assert Path(recipe.checkpoint.path) == tmp_path / "engines/model"


def test_a_hub_id_stays_one_unless_there_is_such_a_folder(written: Write, tmp_path: Path) -> None:
    path = written("r.toml", HEAD + TABLES.replace("./model", "owner/model"))
    assert load_recipe(path).checkpoint.path == "owner/model"
    (tmp_path / "owner/model").mkdir(parents=True)
    assert load_recipe(path).checkpoint.path == str(tmp_path / "owner/model")


def test_a_bundle_s_recipe_finds_its_files_from_the_bundle(written: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/jo")
    content = HEAD + TABLES.replace("/data/g.txt", "/home/jo/g.txt") + '[random_weights]\narchitecture = "./mine"\n'
    recipe = load_recipe(written("r/recipe.toml", content))
    (tmp_path / "r" / "model").mkdir()
    kept = portable(recipe)
    assert kept.random_weights is not None
    assert kept.random_weights.architecture == "../../mine"
    assert (kept.output, kept.checkpoint.path, kept.prompts.memorized) == (Path(), "../../model", Path("../../m.csv"))
    assert kept.prompts.general == Path("g.txt")  # the way to it has a user's name
    again = anchored(kept, tmp_path / "r/out/x")
    assert Path(again.checkpoint.path).resolve() == tmp_path / "r/model"
    assert again.prompts.memorized.resolve() == tmp_path / "r/m.csv"
    assert Recipe.model_validate_json(kept.model_dump_json()) == kept


def test_a_hub_id_and_an_architecture_s_name_are_no_places(written: Write) -> None:
    content = HEAD + TABLES.replace("./model", "owner/model") + '[random_weights]\narchitecture = "sd15"\n'
    kept = portable(load_recipe(written("r.toml", content)))
    assert kept.random_weights is not None
    assert (kept.checkpoint.path, kept.random_weights.architecture) == ("owner/model", "sd15")


def test_a_checkpoint_below_the_bundle_is_not_taken_for_a_hub_id(written: Write, tmp_path: Path) -> None:
    recipe = load_recipe(written("r.toml", HEAD + TABLES.replace("./model", "./out/x/owner/model")))
    (tmp_path / "out/x/owner/model").mkdir(parents=True)
    assert portable(recipe).checkpoint.path == "./owner/model"


def test_a_recipe_survives_its_json(written: Write) -> None:
    recipe = load_recipe(written("r.toml", HEAD + TABLES + "[gates]\nreplication = false\n"))
    assert recipe.gates.replication is False
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('promts = "x"\n' + HEAD + TABLES, "unknown key 'promts': did you mean 'prompts'?"),
        (HEAD + TABLES + "[calibration]\ntreshold = 0.4\n", "unknown key 'calibration.treshold': did you mean 'calibration.threshold'?"),
        (HEAD + TABLES + "[sampling]\nstep = 4\n", "unknown key 'sampling.step': did you mean 'sampling.steps'?"),
        ("steps = 4\n" + HEAD + TABLES, "unknown key 'steps': did you mean 'localization.steps'?"),
        (HEAD + TABLES + "[gates]\nreplication = true\n", "gates.replication: a gate is a number from 0 on, or false"),
        (HEAD + TABLES + "[gates]\ngeneral_drift = -0.1\n", "gates.general_drift: a gate is a number from 0 on, or false"),
        (HEAD + TABLES + "[gates]\nmemorization_score = nan\n", "gates.memorization_score: a gate is a number from 0 on, or false"),
        (HEAD + TABLES + "[gates]\nschedule_floor = true\n", "gates.schedule_floor: a gate is a number from 0 on, or false"),
        (HEAD + TABLES + "[gates]\nslow_down = -1\n", "gates.slow_down: a gate is a number from 0 on, or false"),
        (HEAD + TABLES + "[gates]\nmask_of_ones = true\n", "gates.mask_of_ones: a gate is a number from 0 on, or false"),
        (HEAD + TABLES + "[gates]\nmitigation_agreement = inf\n", "gates.mitigation_agreement: a gate is a number from 0 on, or false"),
        (HEAD + TABLES + "[gates]\nslowdown = 1.1\n", "unknown key 'gates.slowdown': did you mean 'gates.slow_down'?"),
        (HEAD + TABLES + "[gates]\nlatentdrift = 1\n", "unknown key 'gates.latentdrift': did you mean 'gates.latent_drift'?"),
        (HEAD + TABLES + "[gates]\neager = 1\n", "unknown key 'gates.eager': did you mean 'latency.eager'?"),
        (HEAD + TABLES + "[latency]\nruns = 0\n", "latency.runs: Input should be greater than or equal to 1 (got 0)"),
        (HEAD + TABLES + "[latency]\nrun = 3\n", "unknown key 'latency.run': did you mean 'latency.runs'?"),
        (HEAD + TABLES + "[latency]\nseconds = -1\n", "latency.seconds: Input should be greater than or equal to 0 (got -1)"),
        (HEAD + TABLES + "[latency]\nbatches = [1, 1]\n", "latency.batches: a value is named twice (got [1, 1])"),
        (HEAD + TABLES + "[latency]\nbatches = [0]\n", "latency.batches: batches and sizes are whole numbers from 1 on"),
        (HEAD + TABLES + "[latency]\nbatches = []\n", "latency.batches: "),
        (HEAD + TABLES + "[latency]\nsizes = [[64, 64], [64, 64]]\n", "latency.sizes: a value is named twice"),
        (HEAD + TABLES + "[latency]\nsizes = [[64, 0]]\n", "latency.sizes: batches and sizes are whole numbers from 1 on"),
        (HEAD + TABLES + "[latency]\nsizes = [64]\n", "latency.sizes.0: "),
        (HEAD + TABLES + "[latency]\ntargets = ['unet', 'unet']\n", "latency.targets: a value is named twice"),
        (HEAD + TABLES + "[latency]\nbeside = ['openvino']\n", "latency.beside.0: Input should be 'eager bf16', 'onnxruntime', "),
        (HEAD + TABLES + "[latency]\ntargets = ['encoder']\n", "latency.targets.0: Input should be 'text_encoder', 'unet', "),
        (HEAD + TABLES + "[fidelity]\ncurve = [0]\n", "fidelity.curve.0: Input should be greater than 0 (got 0)"),
        (HEAD + TABLES + "[gates]\nzzzzzzzz = 1\n", "unknown key 'gates.zzzzzzzz': the keys here are memorization_score, "),
        ('qqqq = "x"\n' + HEAD + TABLES, "unknown key 'qqqq': the keys here are name, output, "),
        (HEAD, "checkpoint is missing"),
        ("name = \n", "is not valid TOML"),
        (b"name = '\xff'\n", "is not UTF-8 (line 1)"),
        (b"a = " + b"[" * 5000, "is not valid TOML: its values are nested too deeply"),
        (HEAD + TABLES + "[sampling]\nsteps = 0\n", "sampling.steps: Input should be greater than or equal to 1 (got 0)"),
        (HEAD + TABLES + "[sampling]\nheight = 100\n", "sampling.height: Input should be a multiple of 8 (got 100)"),
        (
            HEAD + TABLES + "[calibration]\nthreshold = 1.5\n",
            "calibration.threshold: τ = 1.5, expected a finite number above 0 and below 1: leave it out",
        ),
        (HEAD + TABLES + "[calibration]\nthreshold = nan\n", "calibration.threshold: τ = nan"),
        (HEAD + TABLES + "[calibration]\nthreshold = 0\n", "calibration.threshold: τ = 0, expected"),
        (HEAD + TABLES + "[calibration]\nthreshold = 1.0\n", "calibration.threshold: τ = 1, expected"),
        (HEAD + TABLES + "[export]\ndtype = 'fp8'\n", "export.dtype: Input should be 'fp32', 'fp16' or 'bf16'"),
        (HEAD + TABLES + "[export]\nvariants = []\n", "export.variants: "),
        (HEAD + TABLES + "[export]\nvariants = ['baked', 'baked']\n", "export.variants: "),
        (HEAD.replace('"x"', '"../x"') + TABLES, "name: "),
    ],
)
def test_a_recipe_that_cannot_be_used_says_where_and_why(written: Write, content: str | bytes, complaint: str) -> None:
    path = written("r.toml", content)
    with pytest.raises(InputError) as refused:
        load_recipe(path)
    assert str(path) in str(refused.value)
    assert complaint in str(refused.value)


def test_a_missing_recipe_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(tmp_path)


def test_the_demo_recipe_names_files_that_are_there() -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "engines" / "demo.toml")
    assert recipe.prompts.memorized.is_file()
    assert recipe.prompts.general.is_file()
    assert Path(recipe.checkpoint.path, "model_index.json").is_file()


def test_the_recipe_of_stable_diffusion_for_rtx_takes_random_weights() -> None:
    recipe = with_random_weights(load_recipe(Path(__file__).parents[2] / "engines" / "sd15-rtx.toml"), "sd15")
    assert recipe.random_weights is not None
    assert (recipe.random_weights.architecture, recipe.random_weights.neurons) == ("sd15", None)
    assert (recipe.export.variants, recipe.export.dtype) == (("masked",), "fp16")
    assert recipe.tensorrt_rtx is not None
    assert (recipe.tensorrt_rtx.targets, recipe.tensorrt_rtx.components) == (("sm86", "sm89"), None)
    size = (512, 512, 768)
    assert recipe.tensorrt_rtx.profiles == (ProfileSettings(batch=(1, 1, 4), height=size, width=size),)
    assert (recipe.engine.backend, recipe.engine.provider) == ("onnxruntime", "cpu")


@pytest.mark.parametrize(("name", "architecture", "steps"), [("sd15-cpu", "sd15", 20), ("sd-turbo-cpu", "sd21", 2)])
def test_the_recipes_for_cpus_run_in_openvino_and_take_random_weights(name: str, architecture: str, steps: int) -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "engines" / f"{name}.toml")
    assert (recipe.name, recipe.engine.backend, recipe.engine.device, recipe.sampling.steps) == (name, "openvino", "cpu", steps)
    assert recipe.prompts.general.is_file()
    assert recipe.latency is not None
    assert set(recipe.latency.beside) == {"eager bf16", "onnxruntime"}
    random = with_random_weights(recipe, architecture)
    assert random.random_weights is not None
    assert random.random_weights.architecture == architecture


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ('[export]\ndtype = "bf16"\n', "bf16"),
        ("[export]\nheight = 64\n", "sampling.height must be 64"),
        ("[tensorrt_rtx]\ntargets = ['sm86', 'sm75']\n", 'compiles no fp32 for sm75 .*: set export.dtype = "fp16", or leave sm75 out'),
        (
            "[export]\ndtype = 'fp16'\nfp32 = ['unet']\n[tensorrt_rtx]\ntargets = ['sm75']\ncomponents = ['unet_masked']\n",
            "take unet out of export.fp32, or leave sm75 out",
        ),
        (
            "[export]\ndtype = 'bf16'\n[engine]\nprovider = 'cuda'\n[tensorrt_rtx]\ntargets = ['sm75']\n",
            'compiles no bf16 for sm75 .*: set export.dtype = "fp16", or leave sm75 out',
        ),
        ("[tensorrt_rtx]\ntargets = ['sm70']\n", "does not compile for 'sm70'; it does for sm75, "),
        ("[random_weights]\nseed = 1\n", "random_weights.architecture is missing"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(written: Callable[[str, str | bytes], Path], changes: str, message: str) -> None:
    head = 'name = "x"\noutput = "o"\n[checkpoint]\npath = "c"\n[prompts]\nmemorized = "m.txt"\ngeneral = "g.txt"\n'
    with pytest.raises(InputError, match=message):
        load_recipe(written("r.toml", head + changes))


RUNS_PLANS = "[engine]\nbackend = 'tensorrt'\n"


@pytest.mark.parametrize(
    ("tables", "complaint"),
    [
        (RUNS_PLANS, "engine.backend = 'tensorrt' runs engines that the table [tensorrt] builds: add it, or take 'onnxruntime'"),
        (RUNS_PLANS + "[tensorrt_rtx]\n", "the table [tensorrt] builds: add it, or take 'onnxruntime'"),
        (RUNS_PLANS.replace("tensorrt", "tensorrt-rtx") + "[tensorrt]\n", "the table [tensorrt_rtx] builds: add it, or take 'onnxruntime'"),
        (
            RUNS_PLANS + "[tensorrt]\ncomponents = ['unet', 'text_encoder']\n",
            "needs engines of unet_masked, vae_decoder too: add them to tensorrt.components, or leave that out",
        ),
        (
            RUNS_PLANS.replace("tensorrt", "trt"),
            "engine.backend: Input should be 'onnxruntime', 'openvino', 'tensorrt' or 'tensorrt-rtx' (got 'trt')",
        ),
    ],
)
def test_a_backend_of_tensorrt_needs_engines_of_every_component(written: Write, tables: str, complaint: str) -> None:
    path = written("r.toml", HEAD + TABLES + tables)
    with pytest.raises(InputError) as refused:
        load_recipe(path)
    assert str(refused.value).startswith(f"recipe {path}: ")
    assert str(refused.value).endswith(complaint)
    assert "got {" not in str(refused.value)


def test_bundles_run_in_onnx_runtime_unless_a_table_compiles_what_is_to_run(written: Write) -> None:
    plain = load_recipe(written("r.toml", HEAD + TABLES)).engine
    assert (plain.backend, plain.flavour, plain.torch_device) == ("onnxruntime", None, "cpu")
    assert EngineSettings(provider="cuda").torch_device == "cuda"
    for table, backend in FLAVOUR_OF.items():
        some = "components = ['text_encoder', 'unet', 'vae_decoder']\n"
        tables = f"[engine]\nbackend = '{backend}'\n[{table}]\n{some}[export]\nvariants = ['baked']\ndtype = 'bf16'\n"
        recipe = load_recipe(written("r.toml", HEAD + TABLES + tables))
        assert (recipe.engine.flavour, recipe.engine.torch_device) == (backend, "cuda")
        recipe.check_compiled(["text_encoder", "unet"])
        with pytest.raises(ValueError, match=f"needs engines of text_encoder_2 too: add them to {table}.components"):
            recipe.check_compiled(["text_encoder", "text_encoder_2"])


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ("precision = 'bf16'", "engine.precision = 'bf16' is OpenVINO's: add engine.backend = 'openvino', or leave it out"),
        ("device = 'npu'", "engine.device = 'npu' is OpenVINO's: add engine.backend = 'openvino', or leave it out"),
        ("backend = 'openvino'\nprovider = 'cuda'", "engine.provider = 'cuda' is ONNX Runtime's: say engine.device for OpenVINO"),
        ("backend = 'openvino'\nprecision = 'int8'", "engine.precision: Input should be 'fp32', 'bf16' or 'fp16' (got 'int8')"),
    ],
)
def test_what_is_another_runtime_s_is_refused(written: Write, table: str, complaint: str) -> None:
    with pytest.raises(InputError) as refused:
        load_recipe(written("r.toml", HEAD + TABLES + f"[engine]\n{table}\n"))
    assert complaint in str(refused.value)


def test_gates_are_those_of_the_type_that_openvino_computes_in(written: Write) -> None:
    table = "[engine]\nbackend = 'openvino'\nprecision = 'bf16'\n"
    recipe = load_recipe(written("r.toml", HEAD + TABLES + table))
    assert (recipe.export.dtype, recipe.computed_in, recipe.engine_tolerance, recipe.uses_openvino) == ("fp32", "bf16", 0.2, True)
    assert (recipe.engine.flavour, recipe.engine.torch_device) == (None, "cpu")
    half = load_recipe(written("r.toml", HEAD + TABLES + "[engine]\nbackend = 'openvino'\n[export]\ndtype = 'fp16'\n"))
    assert (half.computed_in, half.engine_tolerance) == ("fp16", 0.05)
    timed = load_recipe(written("r.toml", HEAD + TABLES + "[latency]\nbeside = ['openvino fp32']\n"))
    assert (timed.uses_openvino, timed.engine.backend) == (True, "onnxruntime")
    assert not load_recipe(written("r.toml", HEAD + TABLES + "[latency]\n")).uses_openvino


def test_times_are_taken_only_where_the_recipe_asks(written: Write) -> None:
    assert load_recipe(written("r.toml", HEAD + TABLES)).latency is None
    asked = load_recipe(written("r.toml", HEAD + TABLES + "[latency]\n")).latency
    assert asked == LatencySettings()
    assert asked.targets == ("text_encoder", "unet", "vae_decoder", "pipeline")
    given = load_recipe(written("r.toml", HEAD + TABLES + "[latency]\nsizes = [[64, 32]]\nbatches = [1, 4]\neager = false\n")).latency
    assert given is not None
    assert (given.sizes, given.batches, given.eager) == (((64, 32),), (1, 4), False)


@pytest.mark.parametrize(("dtype", "limits"), [("fp32", (1e-4, 1e-3, 0.0)), ("fp16", (0.05, 0.05, 0.05))])
def test_tolerances_follow_the_type_unless_they_are_given(written: Write, dtype: str, limits: tuple[float, ...]) -> None:
    table = f"[export]\ndtype = '{dtype}'\n"
    own = load_recipe(written("r.toml", HEAD + TABLES + table))
    assert (own.engine_tolerance, own.agreement_tolerance, own.identity_tolerance) == limits
    gates = "[gates]\nengine_error = 0.5\nmitigation_agreement = 0\nmask_of_ones = false\n"
    given = load_recipe(written("r.toml", HEAD + TABLES + table + gates))
    assert (given.engine_tolerance, given.agreement_tolerance, given.identity_tolerance) == (0.5, 0, False)


@pytest.mark.parametrize(
    "tables",
    [
        "[export]\ndtype = 'fp16'\n[tensorrt_rtx]\ntargets = ['sm75']\n",
        "[export]\ndtype = 'fp16'\nfp32 = ['vae_decoder']\n[tensorrt_rtx]\ntargets = ['sm75']\ncomponents = ['unet']\n",
        "[tensorrt_rtx]\n",
    ],
)
def test_what_turing_can_multiply_is_taken(written: Write, tables: str) -> None:
    assert load_recipe(written("r.toml", HEAD + TABLES + tables)).tensorrt_rtx is not None


def test_random_weights_are_the_recipes_or_those_of_the_command_line(written: Write, tmp_path: Path) -> None:
    plain = load_recipe(written("r.toml", HEAD + TABLES))
    assert with_random_weights(plain, None) == plain
    with pytest.raises(InputError, match=r"--neurons goes with --random-weights"):
        with_random_weights(plain, None, Path("n.json"))
    drawn = with_random_weights(plain, "sd15", Path("n.json")).random_weights
    assert drawn is not None
    assert (drawn.architecture, drawn.seed, drawn.neurons) == ("sd15", 0, Path("n.json"))
    own = load_recipe(written("r.toml", HEAD + TABLES + "[random_weights]\narchitecture = './mine'\nseed = 3\nneurons = 'n.json'\n"))
    assert own.random_weights is not None
    assert (own.random_weights.architecture, own.random_weights.neurons) == (str(tmp_path / "mine"), tmp_path / "n.json")
    assert with_random_weights(own, None) == own
    given = with_random_weights(own, "sdxl", Path("/m.json")).random_weights
    assert given is not None
    assert (given.architecture, given.seed, given.neurons) == ("sdxl", 3, Path("/m.json"))


def test_bf16_is_built_without_a_gpu_where_nothing_is_run(written: Write) -> None:
    bf16 = HEAD + TABLES + "[export]\ndtype = 'bf16'\n"
    drawn = "[random_weights]\narchitecture = 'sd15'\n"
    own, given = load_recipe(written("r.toml", bf16 + drawn)), load_recipe(written("r.toml", bf16), random=True)
    assert with_random_weights(given, "sd15") == own
    assert Recipe.model_validate_json(own.model_dump_json()) == own
    for tables in ("", drawn + "[latency]\n"):
        with pytest.raises(InputError, match=r"cannot run with engine.provider = 'cpu': .*; only random weights without \[latency\]"):
            load_recipe(written("r.toml", bf16 + tables))


def test_a_setting_is_named_as_python_or_the_command_line_does() -> None:
    assert from_keywords(LocalizationSettings, {"samples": 4}) == LocalizationSettings(samples=4)
    with pytest.raises(SettingError) as refused:
        from_keywords(LocalizationSettings, {"group_by": "colour"})
    error = pickle.loads(pickle.dumps(refused.value))  # as it comes out of another process
    assert str(error) == str(refused.value) == "group_by = 'colour': input should be 'prompt', 'cluster' or 'list'"
    said = str(error.of_option({"group_by": "group-by"}))
    assert said == "--group-by colour: input should be 'prompt', 'cluster' or 'list'"
    with pytest.raises(InputError) as option:
        from_options(LocalizationSettings, {"samples": 4}, {"group_by": "colour"}, {"group_by": "group-by"})
    assert (str(option.value), type(option.value)) == (said, InputError)
