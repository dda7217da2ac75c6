"""Time, peak memory and correctness of this package beside other implementations of LRP.

``python -m benchmarks --help`` lists the options, ``make bench`` runs all of it. The unit of time
and memory is gradient x input on the same model, inputs and machine, measured in the same run.

Where to find what:

- ``settings``: what is measured, ``models``: on which networks, ``contenders``: by which methods.
- ``timing``: the interleaved rounds, ``memory`` and ``memory_child``: peaks in fresh processes,
  ``correctness``: what a figure is worth, ``many``: several targets or stabilizers in one call.
- ``running``: all of it in order, ``records``: what it leaves.
- ``targets``: what was promised, ``report`` and ``drawing``: tables, JSON and the plot,
  ``machine``: what it ran on.
"""
