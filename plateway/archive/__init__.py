"""The archive: what it says it has, the doors by which its manifests come, and the place itself where it is in reach.

A manifest is the archive's own account of one job: these keys are in these tars. It is read strictly, entry by entry,
and comes from a directory of files (`Inbox`), over HTTP (`Poll`) or as a message. `Archive` is the place where the tars
are. What an account is worth is the catalogue's and ``pipeline``'s to say.
"""

from plateway.archive.http import Limits as Limits
from plateway.archive.http import Page as Page
from plateway.archive.http import Poll as Poll
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
from plateway.archive.target import Filed as Filed
from plateway.archive.target import Written as Written
from plateway.archive.target import open_archive as open_archive
