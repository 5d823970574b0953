"""The catalogue: the only SQL. It records facts and derives states; decisions are made elsewhere.

Every method is one transaction and may be called from any thread. Times arrive as ``now`` or ``at``.
On SQLite a write begins by taking the one lock there is (``BEGIN IMMEDIATE``); on PostgreSQL it takes the row of the
event that it is about, or, where new rows are at stake, an advisory lock. So writers take turns, and none finds a
unique key violated that was free when it looked.
Errors of SQLAlchemy are translated, and never show the URL's password.

    register     known register unsettled look seal unseal revise rekey quarantine replay
    lookup       systems due newest get found ledger revisions ledgers · lease claim_export renew release
    claims       claim_exports release_claims backlog lease_owners release_owner
    exports      record_export record_evidence record_relocation record_damage set_back bytes_read sample
    purges       candidates siblings with_siblings intend record_trashed record_removing record_gone record_restored
                 going stage tally
    tape         receive manifests settle parked record_location record_misplaced record_tape_damage unproven
                 only_copies expired_locations archived_anywhere unarchived manifest_source record_manifest_source
    inventory    accounts export_count exported_to sight_dark clear_dark adopt empty
    summaries    refresh
    stats        counts quarantine_count figures history stuck harmed
    incidents    record_request record_incident incidents
    holds        add_hold release_hold holds resolve_hold holds_of held_copies
    places       site site_created take_site places place record_place
    search       exports_page archives_page archive_members daily search count_matching each_newest overview
                 quarantined_announcements experiments readable ledgers_of
    outbox       register_targets forget_target hold_target release_target pending_messages outbox_messages
                 record_delivered record_outbox_error trim_outbox replay_messages backlogs
    access_keys  add_access_key access_key access_keys disable_access_key delete_access_key
                 shares add_share delete_share
"""

from __future__ import annotations

from plateway.catalog.access_keys import AccessKeys
from plateway.catalog.claims import Claims
from plateway.catalog.engine import NETWORK, network_file_system
from plateway.catalog.exports import ExportRecords
from plateway.catalog.holds import Holds
from plateway.catalog.incidents import Incidents
from plateway.catalog.inventory import Inventory
from plateway.catalog.lookup import Claim as Claim
from plateway.catalog.lookup import Lookup
from plateway.catalog.outbox import Outbox
from plateway.catalog.places import PlaceRecords
from plateway.catalog.purges import Purges
from plateway.catalog.register import Registration
from plateway.catalog.search import SearchQueries
from plateway.catalog.stats import Statistics
from plateway.catalog.tape import Tape

__all__ = ["NETWORK", "Catalog", "network_file_system"]


class Catalog(
    Registration,
    Lookup,
    Claims,
    ExportRecords,
    Purges,
    Tape,
    Inventory,
    Statistics,
    SearchQueries,
    Incidents,
    Holds,
    PlaceRecords,
    Outbox,
    AccessKeys,
):
    """The facts, in SQLite or PostgreSQL.

    ``url`` is SQLAlchemy's (``sqlite:////path``, ``postgresql://…``). ``clock`` replaces the database's own clock;
    ``mounts`` replaces the machine's list of file systems by mount point; ``actor`` is the name in events' histories.
    """
