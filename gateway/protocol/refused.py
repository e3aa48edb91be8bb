"""Parameters of other servers that this one refuses by name, each with what to do instead. It knows names
only.

`NEVER` is refused whatever its value: it could reach past the tenant or into an engine. `MISSED` is what a
caller would miss in the answer: it is refused if it asks for something (`false`, `[]` and the like do not).
Every other name that a route's table does not know is dropped and named to the caller. docs/fields.md says
all of this for callers.
"""

_GATEWAY_SETS = "It is set by the service."
_OTHER_DIALECT = "It belongs to Anthropic's messages API: use /v1/messages, or its OpenAI counterpart."
_CHAT_ONLY = "This route has nothing like it: use /v1/chat/completions."
_BOUND = (
    "On this route the bound of the answer has another name: max_output_tokens on /v1/responses, "
    "max_tokens elsewhere."
)
_STATELESS = "Responses are stateless here: send the whole input."
_NOT_SERVED = "It is not supported by the models served here."
_ENGINE_ONLY = "It is an engine setting that callers may not change."
_STRUCTURED = "Use response_format or structured_outputs."

NEVER = {
    # Parameters that would let one tenant reach another, or take an engine down.
    "cache_salt": _GATEWAY_SETS,
    "chat_template": _ENGINE_ONLY,
    "chat_template_kwargs": "This model takes none.",
    "ec_transfer_params": _ENGINE_ONLY,
    "kv_transfer_params": _ENGINE_ONLY,
    "media_io_kwargs": _ENGINE_ONLY,
    "mm_hashes": _ENGINE_ONLY,
    "mm_payload": _ENGINE_ONLY,
    "mm_processor_kwargs": _ENGINE_ONLY,
    "priority": _GATEWAY_SETS,
    "prompt_embeds": _ENGINE_ONLY,
    "request_id": _GATEWAY_SETS,
    "return_mm_kwargs": _ENGINE_ONLY,
    "session_id": _GATEWAY_SETS,
    "vllm_xargs": _ENGINE_ONLY,
    # Parameters that cost an engine more than their tokens.
    "bad_words": _ENGINE_ONLY,
    "length_penalty": "Beam search is not served.",
    "logprob_token_ids": _ENGINE_ONLY,
    "prompt_logprobs": _ENGINE_ONLY,
    "repetition_detection": _ENGINE_ONLY,
    "routed_experts_prompt_start": _ENGINE_ONLY,
    "stream_interval": _ENGINE_ONLY,
    "truncate_prompt_tokens": "Shorten the prompt instead.",
    "truncation_side": "Shorten the prompt instead.",
    "use_beam_search": "Beam search is not served.",
    "watermarking": _ENGINE_ONLY,
}

MISSED = {
    "best_of": "Only 1 is supported: use n.",
    # Engines' own names for what this service takes in another form, or does not offer.
    "documents": "Put the documents into the messages.",
    "echo": "Only completions echo.",
    "enable_response_messages": _NOT_SERVED,
    "guided_choice": _STRUCTURED,
    "guided_grammar": _STRUCTURED,
    "guided_json": _STRUCTURED,
    "guided_regex": _STRUCTURED,
    "return_token_ids": "Token ids are not returned: use /tokenize.",
    "return_tokens_as_token_ids": "Token ids are not returned: use /tokenize.",
    # State that no engine keeps apart by tenant.
    "background": _STATELESS,
    "conversation": _STATELESS,
    "previous_input_messages": _STATELESS,
    "previous_response_id": _STATELESS,
    "prompt": "Stored prompts are not supported, and the input of this route has another name.",
    # Features of OpenAI's and Anthropic's own services without a counterpart here.
    "audio": _NOT_SERVED,
    "container": _NOT_SERVED,
    "function_call": "Use tool_choice.",
    "functions": "Use tools.",
    "inference_geo": "Where a model runs cannot be chosen by a request.",
    "mcp_servers": "Tools are not run here: run them yourself and send their results.",
    "modalities": "Only text is produced.",
    "moderation": _NOT_SERVED,
    "web_search_options": "Tools are not run here: search yourself and send the results.",
    # Anthropic's names, on OpenAI's routes.
    "output_config": _OTHER_DIALECT,
    "stop_sequences": f"{_OTHER_DIALECT} Here it is called stop.",
    "system": f"{_OTHER_DIALECT} Here it is a message with the role system.",
    # Names of one route, on another.
    "logit_bias": _CHAT_ONLY,
    "logprobs": _CHAT_ONLY,
    "n": _CHAT_ONLY,
    "response_format": "On /v1/messages it is called output_config.format, on /v1/responses text.format.",
    "stop": "On /v1/messages it is called stop_sequences.",
    "top_logprobs": _CHAT_ONLY,
    # If a bound on the answer were ignored it would cost the caller money.
    "max_completion_tokens": _BOUND,
    "max_output_tokens": _BOUND,
    "max_tokens": _BOUND,
}

REFUSED = NEVER | MISSED
