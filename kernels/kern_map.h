// SPDX-License-Identifier: Apache-2.0
// The operations, as X(name, argument struct); kern.h has kern_NAME for each.
#ifndef KERNELS_KERN_MAP_H
#define KERNELS_KERN_MAP_H

// Those that are kernels of ours on every device.
#define KERN_KERNELS_MAP(X)                                                                        \
    X(fill_normal, kern_fill_normal_args)                                                          \
    X(xor_words, kern_xor_words_args)                                                              \
    X(embed, kern_embed_args)                                                                      \
    X(rmsnorm, kern_rmsnorm_args)                                                                  \
    X(qk_rope, kern_qk_rope_args)                                                                  \
    X(swiglu, kern_swiglu_args)                                                                    \
    X(gather_rows, kern_gather_rows_args)                                                          \
    X(kv_write, kern_kv_write_args)                                                                \
    X(locality, kern_locality_args)                                                                \
    X(active, kern_active_args)                                                                    \
    X(page_score, kern_page_score_args)                                                            \
    X(page_select, kern_page_select_args)                                                          \
    X(page_plan, kern_page_plan_args)                                                              \
    X(page_mass, kern_page_mass_args)                                                              \
    X(key_score, kern_key_score_args)                                                              \
    X(key_peaks, kern_key_peaks_args)                                                              \
    X(mass_select, kern_mass_select_args)                                                          \
    X(plan_count, kern_plan_count_args)                                                            \
    X(plan_checksum, kern_plan_checksum_args)                                                      \
    X(attn, kern_attn_args)                                                                        \
    X(vocab_norm, kern_vocab_norm_args)                                                            \
    X(vocab_hist, kern_vocab_filter_args)                                                          \
    X(vocab_narrow, kern_vocab_filter_args)                                                        \
    X(vocab_pick, kern_vocab_pick_args)                                                            \
    X(vocab_norm_merge, kern_vocab_norm_merge_args)                                                \
    X(vocab_choose, kern_vocab_choose_args)                                                        \
    X(unmask, kern_unmask_args)

// All of them: products are cuBLAS's on a GPU.
#define KERN_OPS_MAP(X)                                                                            \
    X(linear, kern_linear_args)                                                                    \
    KERN_KERNELS_MAP(X)

#endif
