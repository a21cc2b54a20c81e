"""What is measured on a machine with an NVIDIA GPU, which has little time and may have no network.

`plan` what is measured, in the order of its worth · `run` runs it · `tasks` single measurements · `contender` a UNet that takes turns ·
`preload` what their processes begin with · `prepare`, `wheels` gather what such a machine lacks · `join` puts it together there · `table`
the results as the README has them
"""
