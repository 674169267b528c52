r"""Run `actstore extract`, with the same options, as a job on the Ray cluster it is submitted to.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python jobs/extract.py --config run.yaml
"""

from __future__ import annotations

import sys

from actstore.cli.job import main_of_job

if __name__ == "__main__":
    sys.exit(main_of_job("extract"))
