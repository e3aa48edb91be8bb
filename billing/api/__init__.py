"""The admin API: the control plane over HTTP (docs/interfaces.md §6). One module a noun; `app.build_app`
puts them together.
"""
