"""How bundles come and go: warm-up, canary, shadow, worker reports, admin routes, draining (docs/lifecycle.md)."""
