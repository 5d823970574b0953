"""The names on an instrument's disk that both sides know, and the room that is left on it."""

EVENTS = "events"  # where a system keeps its event files
TRASH = ".plateway-trash"  # where images lie aside until they are removed
EVENT_FILE = "event.json"  # what the event file of images is called that lie aside
RESERVE = 1 << 30  # bytes that staging, and a restore, leave free on a disk
