"""The admin API: the control plane over HTTP (docs/admin-api.md). One module a noun; `app.build_app`
puts them together.
"""
