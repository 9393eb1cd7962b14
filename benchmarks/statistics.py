"""Whether intervals and comparisons keep what they promise: `simulation.py`, under its known name.

python benchmarks/statistics.py [--trials 2000] [--curve]
"""

import sys

if __name__ == "__main__":
    from simulation import main

    sys.exit(main())
else:  # the scripts beside this one mean the standard library's module, which this file hides
    import importlib.util
    import sysconfig
    from pathlib import Path

    path = Path(sysconfig.get_path("stdlib")) / "statistics.py"
    spec = importlib.util.spec_from_file_location(__name__, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[__name__] = module
    spec.loader.exec_module(module)
