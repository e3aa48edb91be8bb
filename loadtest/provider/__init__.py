"""A scripted provider: OpenAI's or Anthropic's API, as a process, over TLS. It is the simulated engine in
another form, so that faults, truths and controls are the same. `python -m loadtest.provider --help`.
"""
