"""Many instances, many solvers, many seeds: solved in batch, resumed after a crash, compared in a report.

A campaign file says what is solved (`read_campaign`), `run_campaign` solves what its folder does not hold yet, and
`Records` reads the folder, while it runs or afterwards. The command line has it as `batch` and `report`.
"""

from .campaign_file import read_campaign as read_campaign
from .plan import Campaign as Campaign
from .records import Records as Records
from .running import run_campaign as run_campaign
