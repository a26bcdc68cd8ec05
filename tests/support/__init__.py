"""What tests of several folders share. pyproject.toml puts tests/ on pytest's path, so that all of them import it from here.

judge, paged, selection            calls, answers in float64 straight from the formula, and what counts as agreement
mx_aiter                           calls in MXFP4 as aiter has their operands
upstream                           the tests that aiter, DeepGEMM and vLLM have for their MQA logits
emulation                          Triton kernels compiled for gfx950 and launched in the emulator
emulated_mqa, emulated_paged_mqa   the variants of the logits there
steady_loop                        the loop that such a kernel stays in, and the rules that its instructions keep
sample_kernels, sample_gluon_kernel, pitfalls    kernels that are not capgate's
twin_gluon_kernel                  a Gluon kernel round the device functions that classic Triton has, too
code_reading, mbarriers, llvm_ir   what is looked for in compiled code
compile_server, compile_hopper     a process that forks for each compile, and what such a fork makes of Hopper's kernels
compile_pitfalls, sharing          what runs in a process of its own: python -m support.compile_pitfalls
dealing                            which cells of a grid a lane runs
processes                          the environment of such a process
"""
