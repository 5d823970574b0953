"""amplify-object-store's server, by its name: Plateway's gateway with objects only."""
