"""The keys of config.json files as published: also what no release of transformers reads."""

PUBLISHED = {
    ("llama3", "llama"): """
        architectures attention_bias attention_dropout bos_token_id eos_token_id head_dim
        hidden_act hidden_size initializer_range intermediate_size max_position_embeddings
        mlp_bias num_attention_heads num_hidden_layers num_key_value_heads pretraining_tp
        rms_norm_eps rope_scaling rope_theta tie_word_embeddings torch_dtype
        transformers_version use_cache vocab_size
    """,
    ("llama2", "llama"): """
        _name_or_path architectures bos_token_id eos_token_id hidden_act hidden_size
        initializer_range intermediate_size max_position_embeddings max_sequence_length
        num_attention_heads num_hidden_layers num_key_value_heads pad_token_id pretraining_tp
        rms_norm_eps rope_scaling tie_word_embeddings torch_dtype transformers_version use_cache
        vocab_size
    """,
    ("tinyllama", "llama"): """
        _name_or_path architectures bos_token_id eos_token_id hidden_act hidden_size
        initializer_range intermediate_size max_position_embeddings max_sequence_length
        num_attention_heads num_hidden_layers num_key_value_heads pad_token_id pretraining_tp
        rms_norm_eps rope_scaling tie_word_embeddings torch_dtype transformers_version
        unsloth_fixed unsloth_version use_cache vocab_size
    """,
    ("deepseek-coder", "llama"): """
        _name_or_path architectures bos_token_id eos_token_id hidden_act hidden_size
        initializer_range intermediate_size max_position_embeddings max_sequence_length
        num_attention_heads num_hidden_layers num_key_value_heads pad_token_id pretraining_tp
        rms_norm_eps rope_scaling rope_theta tie_word_embeddings torch_dtype
        transformers_version use_cache vocab_size
    """,
    ("smollm2", "llama"): """
        architectures attention_bias attention_dropout bos_token_id eos_token_id head_dim
        hidden_act hidden_size initializer_range intermediate_size is_llama_config
        max_position_embeddings mlp_bias num_attention_heads num_hidden_layers
        num_key_value_heads pretraining_tp rms_norm_eps rope_interleaved rope_scaling rope_theta
        tie_word_embeddings torch_dtype transformers.js_config transformers_version use_cache
        vocab_size
    """,
    ("mistral", "mistral"): """
        architectures attention_dropout bos_token_id eos_token_id hidden_act hidden_size
        initializer_range intermediate_size max_position_embeddings num_attention_heads
        num_hidden_layers num_key_value_heads rms_norm_eps rope_theta sliding_window
        tie_word_embeddings torch_dtype transformers_version use_cache vocab_size
    """,
    ("qwen2", "qwen2"): """
        architectures attention_dropout bos_token_id eos_token_id hidden_act hidden_size
        initializer_range intermediate_size max_position_embeddings max_window_layers
        num_attention_heads num_hidden_layers num_key_value_heads rms_norm_eps rope_theta
        sliding_window tie_word_embeddings torch_dtype transformers_version use_cache use_mrope
        use_sliding_window vocab_size
    """,
    ("qwen3", "qwen3"): """
        architectures attention_bias attention_dropout bos_token_id eos_token_id head_dim
        hidden_act hidden_size initializer_range intermediate_size max_position_embeddings
        max_window_layers num_attention_heads num_hidden_layers num_key_value_heads rms_norm_eps
        rope_scaling rope_theta sliding_window tie_word_embeddings torch_dtype
        transformers_version use_cache use_mrope use_sliding_window vocab_size
    """,
    ("qwen3moe", "qwen3_moe"): """
        architectures attention_bias attention_dropout bos_token_id decoder_sparse_step
        eos_token_id head_dim hidden_act hidden_size initializer_range intermediate_size
        max_position_embeddings max_window_layers mlp_only_layers moe_intermediate_size
        norm_topk_prob num_attention_heads num_experts num_experts_per_tok num_hidden_layers
        num_key_value_heads output_router_logits rms_norm_eps rope_scaling rope_theta
        router_aux_loss_coef sliding_window tie_word_embeddings torch_dtype transformers_version
        use_cache use_mrope use_sliding_window vocab_size
    """,
    ("gpt2", "gpt2"): """
        activation_function architectures attn_pdrop bos_token_id embd_pdrop eos_token_id
        initializer_range layer_norm_epsilon n_ctx n_embd n_head n_layer n_positions resid_pdrop
        summary_activation summary_first_dropout summary_proj_to_labels summary_type
        summary_use_proj task_specific_params vocab_size
    """,
    ("distilgpt2", "gpt2"): """
        _num_labels activation_function architectures attn_pdrop bos_token_id embd_pdrop
        eos_token_id id2label initializer_range label2id layer_norm_epsilon n_ctx n_embd n_head
        n_layer n_positions resid_pdrop summary_activation summary_first_dropout
        summary_proj_to_labels summary_type summary_use_proj task_specific_params vocab_size
    """,
    ("gpt2-medium", "gpt2"): """
        activation_function architectures attn_pdrop bos_token_id embd_pdrop eos_token_id
        initializer_range layer_norm_epsilon n_ctx n_embd n_head n_layer n_positions n_special
        output_past predict_special_tokens resid_pdrop summary_activation summary_first_dropout
        summary_proj_to_labels summary_type summary_use_proj task_specific_params vocab_size
    """,
    ("gpt_neox", "gpt_neox"): """
        architectures attention_probs_dropout_prob bos_token_id eos_token_id hidden_act
        hidden_dropout_prob hidden_size initializer_range intermediate_size layer_norm_eps
        max_position_embeddings num_attention_heads num_hidden_layers rotary_emb_base rotary_pct
        tie_word_embeddings torch_dtype transformers_version use_cache use_parallel_residual
        vocab_size weight_tying
    """,
    ("gpt_neo", "gpt_neo"): """
        activation_function architectures attention_dropout attention_layers attention_types
        bos_token_id embed_dropout eos_token_id gradient_checkpointing hidden_size
        initializer_range intermediate_size layer_norm_epsilon max_position_embeddings num_heads
        num_layers resid_dropout summary_activation summary_first_dropout summary_proj_to_labels
        summary_type summary_use_proj transformers_version use_cache vocab_size window_size
    """,
    ("gptj", "gptj"): """
        activation_function architectures attn_pdrop bos_token_id embd_pdrop eos_token_id
        gradient_checkpointing initializer_range layer_norm_epsilon n_embd n_head n_inner
        n_layer n_positions resid_pdrop rotary rotary_dim scale_attn_weights summary_activation
        summary_type task_specific_params tie_word_embeddings tokenizer_class
        transformers_version use_cache vocab_size
    """,
    ("gemma", "gemma"): """
        architectures attention_bias attention_dropout bos_token_id eos_token_id head_dim
        hidden_act hidden_activation hidden_size initializer_range intermediate_size
        max_position_embeddings num_attention_heads num_hidden_layers num_key_value_heads
        pad_token_id rms_norm_eps rope_scaling rope_theta torch_dtype transformers_version
        use_cache vocab_size
    """,
    ("gemma2", "gemma2"): """
        architectures attention_bias attention_dropout attn_logit_softcapping bos_token_id
        cache_implementation eos_token_id final_logit_softcapping head_dim hidden_act
        hidden_activation hidden_size initializer_range intermediate_size
        max_position_embeddings num_attention_heads num_hidden_layers num_key_value_heads
        pad_token_id query_pre_attn_scalar rms_norm_eps rope_scaling rope_theta sliding_window
        sliding_window_size torch_dtype transformers_version use_cache vocab_size
    """,
    ("gemma3", "gemma3_text"): """
        _sliding_window_pattern architectures attention_bias attention_dropout
        attn_logit_softcapping bos_token_id cache_implementation eos_token_id
        final_logit_softcapping head_dim hidden_act hidden_activation hidden_size
        initializer_range intermediate_size layer_types max_position_embeddings
        num_attention_heads num_hidden_layers num_key_value_heads pad_token_id
        query_pre_attn_scalar rms_norm_eps rope_local_base_freq rope_scaling rope_theta
        sliding_window sliding_window_pattern torch_dtype transformers_version
        use_bidirectional_attention use_cache vocab_size
    """,
    ("phi3", "phi3"): """
        _name_or_path architectures attention_bias attention_dropout bos_token_id embd_pdrop
        eos_token_id full_attn_mod hidden_act hidden_size initializer_range intermediate_size
        interpolate_factor max_position_embeddings num_attention_heads num_hidden_layers
        num_key_value_heads original_max_position_embeddings pad_token_id partial_rotary_factor
        resid_pdrop rms_norm_eps rope_scaling rope_theta sliding_window tie_word_embeddings
        torch_dtype transformers_version use_cache vocab_size
    """,
    ("phi", "phi"): """
        _name_or_path architectures attention_bias attention_dropout bos_token_id embd_pdrop
        eos_token_id full_attn_mod hidden_act hidden_size initializer_range intermediate_size
        interpolate_factor layer_norm_eps max_position_embeddings n_embd num_attention_heads
        num_hidden_layers num_key_value_heads original_max_position_embeddings pad_token_id
        partial_rotary_factor qk_layernorm resid_pdrop rms_norm_eps rope_scaling rope_theta
        sliding_window tie_word_embeddings torch_dtype transformers_version use_cache vocab_size
    """,
    ("mixtral", "mixtral"): """
        architectures attention_dropout bos_token_id eos_token_id hidden_act hidden_size
        initializer_range intermediate_size max_position_embeddings num_attention_heads
        num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts
        output_router_logits rms_norm_eps rope_theta router_aux_loss_coef router_jitter_noise
        sliding_window tie_word_embeddings torch_dtype transformers_version use_cache vocab_size
    """,
    ("falcon", "falcon"): """
        activation alibi apply_residual_connection_post_layernorm architectures
        attention_dropout bias bos_token_id eos_token_id ffn_hidden_size hidden_dropout
        hidden_size initializer_range layer_norm_epsilon multi_query n_head_kv
        new_decoder_architecture num_attention_heads num_hidden_layers num_kv_heads
        num_ln_in_parallel_attn parallel_attn torch_dtype transformers_version use_cache
        vocab_size
    """,
    ("bloom", "bloom"): """
        apply_residual_connection_post_layernorm architectures attention_dropout
        attention_softmax_in_fp32 bias_dropout_fusion bos_token_id dtype eos_token_id
        hidden_dropout hidden_size initializer_range layer_norm_epsilon masked_softmax_fusion
        n_embed n_inner n_layer num_attention_heads offset_alibi pad_token_id pretraining_tp
        seq_length skip_bias_add skip_bias_add_qkv slow_but_exact transformers_version
        unk_token_id use_cache vocab_size
    """,
    ("opt", "opt"): """
        _remove_final_layer_norm activation_dropout activation_function architectures
        attention_dropout bos_token_id do_layer_norm_before dropout enable_bias eos_token_id
        ffn_dim hidden_size init_std layer_norm_elementwise_affine layerdrop
        max_position_embeddings num_attention_heads num_hidden_layers pad_token_id prefix
        torch_dtype transformers_version use_cache vocab_size word_embed_proj_dim
    """,
    ("bert", "bert"): """
        architectures attention_probs_dropout_prob directionality gradient_checkpointing
        hidden_act hidden_dropout_prob hidden_size initializer_range intermediate_size
        layer_norm_eps max_position_embeddings num_attention_heads num_hidden_layers
        pad_token_id pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers
        pooler_size_per_head pooler_type position_embedding_type transformers_version
        type_vocab_size use_cache vocab_size
    """,
    ("deepseek_v3", "deepseek_v3"): """
        architectures attention_bias attention_dropout aux_loss_alpha bos_token_id eos_token_id
        ep_size first_k_dense_replace hidden_act hidden_size initializer_range intermediate_size
        kv_lora_rank max_position_embeddings moe_intermediate_size moe_layer_freq n_group
        n_routed_experts n_shared_experts norm_topk_prob num_attention_heads num_experts_per_tok
        num_hidden_layers num_key_value_heads num_nextn_predict_layers pretraining_tp
        q_lora_rank qk_nope_head_dim qk_rope_head_dim rms_norm_eps rope_scaling rope_theta
        routed_scaling_factor scoring_func seq_aux tie_word_embeddings topk_group topk_method
        torch_dtype transformers_version use_cache v_head_dim vocab_size
    """,
    ("olmo2", "olmo2"): """
        architectures attention_bias attention_dropout eos_token_id hidden_act hidden_size
        initializer_range intermediate_size max_position_embeddings num_attention_heads
        num_hidden_layers num_key_value_heads pad_token_id rms_norm_eps rope_scaling rope_theta
        tie_word_embeddings torch_dtype transformers_version use_cache vocab_size
    """,
    ("gpt_oss", "gpt_oss"): """
        architectures attention_bias attention_dropout eos_token_id experts_per_token head_dim
        hidden_act hidden_size initial_context_length initializer_range intermediate_size
        layer_types max_position_embeddings num_attention_heads num_experts_per_tok
        num_hidden_layers num_key_value_heads num_local_experts output_router_logits
        pad_token_id rms_norm_eps rope_scaling rope_theta router_aux_loss_coef sliding_window
        swiglu_limit tie_word_embeddings transformers_version use_cache vocab_size
    """,
}
