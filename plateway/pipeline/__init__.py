"""The verbs, in the order an image lives them: register, export, verify, purge.

Each has the same beats: look up, decide, do, note. Doing one twice is harmless; a crash between "do" and "note" heals
on the next run, because recovery reads only what is durable: the disk, the bucket, the catalogue.
Flows and the command line call these; nothing here knows who calls, retries or waits.
"""

from plateway.bench import TRASH as TRASH
from plateway.outcome import Outcome as Outcome
from plateway.outcome import as_dict as as_dict
from plateway.outcome import log_outcome as log_outcome
from plateway.pipeline.archives import archive as archive
from plateway.pipeline.copies import Copy as Copy
from plateway.pipeline.copies import cat as cat
from plateway.pipeline.discovery import Registered as Registered
from plateway.pipeline.discovery import register as register
from plateway.pipeline.evidence import sample as sample
from plateway.pipeline.evidence import verify as verify
from plateway.pipeline.expire import expire as expire
from plateway.pipeline.exports import due as due
from plateway.pipeline.exports import export as export
from plateway.pipeline.exports import sweep as sweep
from plateway.pipeline.inbox import collect as collect
from plateway.pipeline.inbox import read_archive as read_archive
from plateway.pipeline.inbox import receive as receive
from plateway.pipeline.inbox import settle as settle
from plateway.pipeline.lifecycle import Caution as Caution
from plateway.pipeline.lifecycle import policy_warnings as policy_warnings
from plateway.pipeline.line import Line as Line
from plateway.pipeline.line import each as each
from plateway.pipeline.line import failed as failed
from plateway.pipeline.line import open_line as open_line
from plateway.pipeline.places import adopt_place as adopt_place
from plateway.pipeline.places import inspect_places as inspect_places
from plateway.pipeline.purge import purge as purge
from plateway.pipeline.rebuilding import Rebuilt as Rebuilt
from plateway.pipeline.rebuilding import rebuild as rebuild
from plateway.pipeline.reconciliation import Reconciled as Reconciled
from plateway.pipeline.reconciliation import reconcile as reconcile
from plateway.pipeline.relocation import relocate as relocate
from plateway.pipeline.reports import days as days
from plateway.pipeline.reports import report as report
from plateway.pipeline.restore import restore as restore
from plateway.pipeline.views import detail as detail
from plateway.pipeline.views import status as status
