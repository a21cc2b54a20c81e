"""What the numbers of README and docs come from: scripts that measure, and what they found in `results/`.

`cpu/` this machine without its GPU · `gpu/` a machine with an NVIDIA GPU, in minutes · `serving/` a bundle on a server · `shared` what
they have in common · `tables` from results to tables and figures, `front` to the README's own lines. Each starts from the root of the
checkout, as `python -m benchmarks.cpu.demo` does.
"""
