"""What the README's numbers come from: scripts that measure, and what they found in `results/`.

`cpu/` this machine without its GPU · `gpu/` a machine with an NVIDIA GPU, in minutes · `serving/` a bundle on a server · `shared` what
they have in common · `readme` from results to the README's tables and figures. Each starts from the root of the checkout, as
`python -m benchmarks.cpu.demo` does.
"""
