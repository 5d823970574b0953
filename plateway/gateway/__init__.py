"""The HTTP gateway: objects, events, images and pages. `create_app` builds the application, `serve` runs it."""

from plateway.gateway.access import Access as Access
from plateway.gateway.app import Parts as Parts
from plateway.gateway.app import create_app as create_app
from plateway.gateway.rate_limits import Limits as Limits
from plateway.gateway.rate_limits import Rate as Rate
from plateway.gateway.server import serve as serve
