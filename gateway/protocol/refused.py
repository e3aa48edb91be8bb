"""Parameters that exist elsewhere and are refused here by name, each with what to do about it. Knows names only.

A name that is in no route's allow-list is refused anyway; being listed here gives it a reason, and lets null pass.
"""

_GATEWAY_SETS = "It is set by the service."
_OTHER_DIALECT = "It belongs to Anthropic's messages API: use /v1/messages, or its OpenAI counterpart."
_OPENAI_ONLY = "It belongs to OpenAI's API: use an OpenAI route, or its Anthropic counterpart."
_STATELESS = "Responses are stateless here: send the whole input."
_NOT_SERVED = "It is not supported by the models served here."
_ENGINE_ONLY = "It is an engine setting that callers may not change."

REFUSED = {
    "best_of": "Only 1 is supported: use n.",
    # What would let one tenant reach another, or take an engine down.
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
    # What costs an engine more than its tokens say.
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
    # State that no engine keeps apart by tenant.
    "background": _STATELESS,
    "conversation": _STATELESS,
    "previous_input_messages": _STATELESS,
    "previous_response_id": _STATELESS,
    "prompt": "Stored prompts are not supported, and the input of this route has another name.",
    "store": "Nothing is stored: send false, or leave it out.",
    # OpenAI's features without a counterpart here.
    "audio": _NOT_SERVED,
    "function_call": "Use tool_choice.",
    "functions": "Use tools.",
    "modalities": _NOT_SERVED,
    "moderation": _NOT_SERVED,
    "prediction": _NOT_SERVED,
    "verbosity": _NOT_SERVED,
    "web_search_options": _NOT_SERVED,
    # Anthropic's words, on OpenAI's routes; some have no counterpart anywhere here.
    "anthropic_beta": "Betas go in the anthropic-beta header.",
    "anthropic_version": "It goes in the anthropic-version header of /v1/messages.",
    "container": _NOT_SERVED,
    "context_management": _NOT_SERVED,
    "mcp_servers": _NOT_SERVED,
    "output_config": _OTHER_DIALECT,
    "stop_sequences": f"{_OTHER_DIALECT} Here it is called stop.",
    "system": f"{_OTHER_DIALECT} Here it is a message with the role system.",
    "thinking": _OTHER_DIALECT,
    # OpenAI's words, on Anthropic's routes.
    "frequency_penalty": _OPENAI_ONLY,
    "logit_bias": _OPENAI_ONLY,
    "logprobs": _OPENAI_ONLY,
    "max_completion_tokens": f"{_OPENAI_ONLY} Here it is called max_tokens.",
    "n": _OPENAI_ONLY,
    "parallel_tool_calls": f"{_OPENAI_ONLY} Here it is tool_choice.disable_parallel_tool_use.",
    "presence_penalty": _OPENAI_ONLY,
    "response_format": f"{_OPENAI_ONLY} Here it is output_config.format.",
    "seed": _OPENAI_ONLY,
    "stop": f"{_OPENAI_ONLY} On /v1/messages it is called stop_sequences.",
    "stream_options": _OPENAI_ONLY,
    "top_logprobs": _OPENAI_ONLY,
}
