"""What is measured on a CPU: a script for each result, and what they run on.

`demo` a demo built and judged, `adherence` what the second one's pictures show, `evidence_table` both in tables · `fidelity`, `latency`,
`few_steps` engines against eager, `latency_table` as tables · `full_size` bundles of true size · `localization`, `paraphrases`,
`detection`, `policies` the method · `attack` what comes back, `hardening` of hardened weights too by its `hardening_judges`,
`hardening_full_size` what a round takes, `attack_table` as tables and a figure · `quantization` memories in fewer bits,
`quantization_table` as a table · `standalone` drawing without PyTorch · `models` checkpoints and engines to measure with · `figures` the
results drawn
"""
