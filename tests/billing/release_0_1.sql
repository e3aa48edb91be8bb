-- Rows as version 0.1 wrote them at revision 0009: two billed requests, a signed contract and its evidence, a key.
INSERT INTO pool (pool, instances, headroom_permille, set_aside_mu_s, updated_ms)
VALUES ('llama', 2, 0, 0, 1795840561355);
INSERT INTO price (price_id, model, valid_from_ms, input_picousd, cached_input_picousd, output_picousd, created_ms) OVERRIDING SYSTEM VALUE
VALUES (1, 'llama', 1600000000000, 100000, 50000, 400000, 1795840562397);
INSERT INTO projection_outbox (change_id, kind, subject, created_ms) OVERRIDING SYSTEM VALUE
VALUES (1, 'model', 'llama', 1795840561272);
INSERT INTO projection_outbox (change_id, kind, subject, created_ms) OVERRIDING SYSTEM VALUE
VALUES (2, 'tenant', 'ten_2e07d8b6e838af39c69beb14', 1795840561512);
INSERT INTO projection_outbox (change_id, kind, subject, created_ms) OVERRIDING SYSTEM VALUE
VALUES (3, 'tenant', 'ten_3c0163f38c31799752246cfd', 1795840561590);
INSERT INTO projection_outbox (change_id, kind, subject, created_ms) OVERRIDING SYSTEM VALUE
VALUES (4, 'tenant', 'ten_19aadfbdba8e91e0b53839c7', 1795840561644);
INSERT INTO projection_outbox (change_id, kind, subject, created_ms) OVERRIDING SYSTEM VALUE
VALUES (5, 'key', 'key_10487a40c5080a2f30644d46', 1795840562271);
INSERT INTO tenant (tenant_id, name, kind, status, on_demand, redis_down, created_ms, updated_ms, weight)
VALUES ('ten_2e07d8b6e838af39c69beb14', 'acme', 'external', 'active', true, '{"policy": "refuse"}', 1795840561472, 1795840561472, 1);
INSERT INTO tenant (tenant_id, name, kind, status, on_demand, redis_down, created_ms, updated_ms, weight)
VALUES ('ten_3c0163f38c31799752246cfd', 'bolt', 'external', 'active', true, '{"policy": "refuse"}', 1795840561571, 1795840561571, 1);
INSERT INTO tenant (tenant_id, name, kind, status, on_demand, redis_down, created_ms, updated_ms, weight)
VALUES ('ten_19aadfbdba8e91e0b53839c7', 'core', 'external', 'active', true, '{"policy": "refuse"}', 1795840561599, 1795840561599, 1);
INSERT INTO usage_event (request_id, kind, version, tenant, project, key_id, model, pool, cell, instance, epoch, route, stream, "class", contract, weights, samples, started_ms, first_token_ms, ended_ms, waited_ms, ending, usage_source, anomaly, produced_prompt, produced_cached, produced_output, delivered_output, billed_prompt, billed_cached, billed_output, absorbed_prompt, absorbed_output, absorbed_reasons, units_mu, http_status, gateway, orphan, digest, evidence, recorded_ms, decision)
VALUES ('req_1', 'request', 1, 'ten_2e07d8b6e838af39c69beb14', 'prj_a', 'key_a', 'llama', 'llama', 'llama', 'i1', 'e1', 'chat', true, 'on_demand', NULL, '{"version": 1, "w_in_mu": 1000, "w_out_mu": 4000, "w_cached_mu": 100}', 1, 1700000000000, 1700000000200, 1700000001500, 0, 'complete', 'engine', NULL, 1000, 200, 50, 50, 1000, 200, 50, 0, 0, '{}', 1020000, 200, 'gw_1', false, '87d780375f87f2a80c074311976a3157de22c174a01a77bc1b2865afaef13483', NULL, 1795840562458, NULL);
INSERT INTO usage_event (request_id, kind, version, tenant, project, key_id, model, pool, cell, instance, epoch, route, stream, "class", contract, weights, samples, started_ms, first_token_ms, ended_ms, waited_ms, ending, usage_source, anomaly, produced_prompt, produced_cached, produced_output, delivered_output, billed_prompt, billed_cached, billed_output, absorbed_prompt, absorbed_output, absorbed_reasons, units_mu, http_status, gateway, orphan, digest, evidence, recorded_ms, decision)
VALUES ('req_2', 'request', 1, 'ten_2e07d8b6e838af39c69beb14', 'prj_a', 'key_a', 'llama', 'llama', 'llama', 'i1', 'e1', 'chat', true, 'on_demand', 'con_c5000be3f2d67a51b72e508f', '{"version": 1, "w_in_mu": 1000, "w_out_mu": 4000, "w_cached_mu": 100}', 1, 1700000000000, 1700000000200, 1700000001500, 0, 'complete', 'engine', NULL, 7, 0, 3, 3, 7, 0, 3, 0, 0, '{}', 19000, 200, 'gw_1', false, '727189a98a62f9a2da3a074058503118837924cee738162343f9cd50c4720868', NULL, 1795840562689, NULL);
INSERT INTO usage_total (instance, epoch, billed_prompt, billed_output, absorbed_prompt, absorbed_output)
VALUES ('i1', 'e1', 1007, 53, 0, 0);
INSERT INTO contract (contract_id, tenant_id, pool, state, starts_ms, ends_ms, minimum_until_ms, tenant_notice_days, operator_notice_days, notice_by, notice_given_ms, effective_end_ms, overflow, spill_mu_s, headroom_permille, price_reference, created_ms, later)
VALUES ('con_c5000be3f2d67a51b72e508f', 'ten_2e07d8b6e838af39c69beb14', 'llama', 'signed', 1800000000000, 1808640000000, 1800000000000, 30, 30, NULL, NULL, 1808640000000, 'reject', NULL, 0, NULL, 1800000000000, '[]');
INSERT INTO ledger_transaction (transaction_id, request_id, pricing, price_id, recorded_ms) OVERRIDING SYSTEM VALUE
VALUES (1, 'req_1', 'priced', 1, 1795840562512);
INSERT INTO ledger_transaction (transaction_id, request_id, pricing, price_id, recorded_ms) OVERRIDING SYSTEM VALUE
VALUES (2, 'req_2', 'priced', 1, 1795840562743);
INSERT INTO model (name, pool, cell, visible, owner, routes, engine_model, context_tokens, vocabulary_tokens, default_max_tokens, weights_version, chat_template_kwargs, status, created_ms, updated_ms)
VALUES ('llama', 'llama', 'llama', 'everyone', NULL, '{chat,completions,responses,messages,tokenize}', 'llama', 4096, NULL, 1024, 1, '{}', 'active', 1795840561205, 1795840561205);
INSERT INTO project (project_id, tenant_id, name, created_ms, updated_ms)
VALUES ('prj_0564821f1519fd308da528a1', 'ten_2e07d8b6e838af39c69beb14', 'default', 1795840561492, 1795840561492);
INSERT INTO project (project_id, tenant_id, name, created_ms, updated_ms)
VALUES ('prj_0a70f9abb0cf3790a8991e83', 'ten_3c0163f38c31799752246cfd', 'default', 1795840561574, 1795840561574);
INSERT INTO project (project_id, tenant_id, name, created_ms, updated_ms)
VALUES ('prj_e74eebdaa83716931c6e4dc5', 'ten_19aadfbdba8e91e0b53839c7', 'default', 1795840561633, 1795840561633);
INSERT INTO project (project_id, tenant_id, name, created_ms, updated_ms)
VALUES ('prj_c3920ea0e6f971c069f50399', 'ten_2e07d8b6e838af39c69beb14', 'web', 1795840562168, 1795840562168);
INSERT INTO api_key (key_id, hash, display, name, tenant_id, project_id, expires_at_ms, revoked_ms, created_ms, updated_ms)
VALUES ('key_10487a40c5080a2f30644d46', '0e555c764f69abf6c3baf97cde74e08e10e6ae03d6dc0d965634dc44fa79d87e', 'sk-…Xq_0', NULL, 'ten_2e07d8b6e838af39c69beb14', 'prj_c3920ea0e6f971c069f50399', NULL, NULL, 1795840562254, 1795840562254);
INSERT INTO calibration (calibration_id, pool, model, weights_version, capacity_mu_s, sequences, tpot_target_ms, ttft_target_ms, hardware, engine_version, error_permille, report, created_ms)
VALUES ('cal_1800000000000_0', 'llama', 'llama', 1, 1000000, 16, 50, 1000, 'cpu', '0.32', 30, '{}', 1800000000000);
INSERT INTO contract_history (entry, contract_id, at_ms, change, by, after, detail) OVERRIDING SYSTEM VALUE
VALUES (1, 'con_c5000be3f2d67a51b72e508f', 1800000000000, 'draft', 'operator', '{"state": "draft", "terms": {"pool": "llama", "later": [], "steps": [{"mu_s": 10000, "from_ms": 1800000000000}], "ends_ms": 1808640000000, "overflow": "reject", "starts_ms": 1800000000000, "tenant_id": "ten_2e07d8b6e838af39c69beb14", "spill_mu_s": null, "price_reference": null, "minimum_until_ms": 1800000000000, "headroom_permille": 0, "tenant_notice_days": 30, "operator_notice_days": 30}, "notice_by": null, "created_ms": 1800000000000, "contract_id": "con_c5000be3f2d67a51b72e508f", "notice_given_ms": null, "effective_end_ms": 1808640000000}', NULL);
INSERT INTO contract_history (entry, contract_id, at_ms, change, by, after, detail) OVERRIDING SYSTEM VALUE
VALUES (2, 'con_c5000be3f2d67a51b72e508f', 1800000000000, 'signed', 'operator', '{"state": "signed", "terms": {"pool": "llama", "later": [], "steps": [{"mu_s": 10000, "from_ms": 1800000000000}], "ends_ms": 1808640000000, "overflow": "reject", "starts_ms": 1800000000000, "tenant_id": "ten_2e07d8b6e838af39c69beb14", "spill_mu_s": null, "price_reference": null, "minimum_until_ms": 1800000000000, "headroom_permille": 0, "tenant_notice_days": 30, "operator_notice_days": 30}, "notice_by": null, "created_ms": 1800000000000, "contract_id": "con_c5000be3f2d67a51b72e508f", "notice_given_ms": null, "effective_end_ms": 1808640000000}', NULL);
INSERT INTO contract_minute (contract_id, minute_ms, assigned_mu, used_mu, lent_mu, borrowed_mu, refused, cut_mu, missing_mu)
VALUES ('con_c5000be3f2d67a51b72e508f', 1800000000000, 600000, 1500, 0, 0, 1, 0, 500);
INSERT INTO contract_step (contract_id, from_ms, mu_s)
VALUES ('con_c5000be3f2d67a51b72e508f', 1800000000000, 10000);
INSERT INTO ledger_posting (transaction_id, line, account, holder, amount_picousd)
VALUES (1, 0, 'receivable', 'ten_2e07d8b6e838af39c69beb14', 110000000);
INSERT INTO ledger_posting (transaction_id, line, account, holder, amount_picousd)
VALUES (1, 1, 'revenue', 'llama', -110000000);
INSERT INTO ledger_posting (transaction_id, line, account, holder, amount_picousd)
VALUES (2, 0, 'receivable', 'ten_2e07d8b6e838af39c69beb14', 1900000);
INSERT INTO ledger_posting (transaction_id, line, account, holder, amount_picousd)
VALUES (2, 1, 'revenue', 'llama', -1900000);
INSERT INTO model_weights (model, version, w_in_mu, w_cached_mu, w_out_mu, created_ms)
VALUES ('llama', 1, 1000, 100, 4000, 1795840561249);
