"""The archive: its manifests, the sources they come from, and its tars where they can be read.

A manifest is the archive's report of one job: these keys are in these tars. It is parsed strictly, entry by entry, and
comes from a directory of files (`Inbox`), over HTTP (`Poll`) or as a message. `Archive` reads and writes the tars.
The catalogue and ``pipeline`` decide how far a report is trusted.
"""

from plateway.archive.http import ManifestPage as ManifestPage
from plateway.archive.http import Poll as Poll
from plateway.archive.http import PollLimits as PollLimits
from plateway.archive.inbox import Delivery as Delivery
from plateway.archive.inbox import Inbox as Inbox
from plateway.archive.manifest import CAP as CAP
from plateway.archive.manifest import Entry as Entry
from plateway.archive.manifest import Notice as Notice
from plateway.archive.manifest import dump as dump
from plateway.archive.manifest import parse as parse
from plateway.archive.tar import TarMember as TarMember
from plateway.archive.target import MANIFESTS as MANIFESTS
from plateway.archive.target import Archive as Archive
from plateway.archive.target import ArchivedFile as ArchivedFile
from plateway.archive.target import Written as Written
from plateway.archive.target import open_archive as open_archive
