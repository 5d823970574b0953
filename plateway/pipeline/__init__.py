"""The verbs, in the order of an image's life: register, export, verify, archive, purge, expire, restore.

Each verb looks up, decides, acts and records. Repeating one is harmless; a crash between act and record is repaired by
the next run, because recovery reads only what is durable: the disk, the bucket, the catalogue.
Flows and the command line call the verbs, and retry them.
"""

from plateway.bench import TRASH as TRASH
from plateway.outcome import Outcome as Outcome
from plateway.outcome import as_dict as as_dict
from plateway.outcome import log_outcome as log_outcome
from plateway.pipeline.archive import archive as archive
from plateway.pipeline.batch import carry as carry
from plateway.pipeline.batch import claim_large as claim_large
from plateway.pipeline.batch import claim_small as claim_small
from plateway.pipeline.batch import group_systems as group_systems
from plateway.pipeline.breaker import Breaker as Breaker
from plateway.pipeline.context import Site as Site
from plateway.pipeline.context import open_site as open_site
from plateway.pipeline.describe import detail as detail
from plateway.pipeline.describe import status as status
from plateway.pipeline.expire import expire as expire
from plateway.pipeline.export import due as due
from plateway.pipeline.export import export as export
from plateway.pipeline.export import sweep as sweep
from plateway.pipeline.hold import hold as hold
from plateway.pipeline.hold import release as release
from plateway.pipeline.ingest import collect as collect
from plateway.pipeline.ingest import read_archive as read_archive
from plateway.pipeline.ingest import receive as receive
from plateway.pipeline.ingest import settle as settle
from plateway.pipeline.lifecycle_rules import Caution as Caution
from plateway.pipeline.lifecycle_rules import policy_warnings as policy_warnings
from plateway.pipeline.places import adopt_place as adopt_place
from plateway.pipeline.places import inspect_places as inspect_places
from plateway.pipeline.purge import purge as purge
from plateway.pipeline.read import Copy as Copy
from plateway.pipeline.read import cat as cat
from plateway.pipeline.rebuild import Rebuilt as Rebuilt
from plateway.pipeline.rebuild import rebuild as rebuild
from plateway.pipeline.reconcile import Reconciled as Reconciled
from plateway.pipeline.reconcile import reconcile as reconcile
from plateway.pipeline.register import Registered as Registered
from plateway.pipeline.register import register as register
from plateway.pipeline.relocate import relocate as relocate
from plateway.pipeline.report import days as days
from plateway.pipeline.report import report as report
from plateway.pipeline.restore import restore as restore
from plateway.pipeline.run import each as each
from plateway.pipeline.run import failed as failed
from plateway.pipeline.verify import sample as sample
from plateway.pipeline.verify import verify as verify
