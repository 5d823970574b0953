"""amplify-object-store's clients, by their name."""

from plateway.client import AsyncRestStore as AsyncRestStore
from plateway.client import AsyncRestStoreError as AsyncRestStoreError
from plateway.client import RestStore as RestStore
from plateway.client import RestStoreError as RestStoreError
