"""What a single measurement makes of what it sees."""

from __future__ import annotations

import pytest

from benchmarks.gpu import tasks


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("nvjet_sm90_hsh_192x192_64x4_2x1_v_bz_coopB_bias_TNN", "matrix product"),
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc", "convolution"),
        ("void at::native::RowwiseMomentsCUDAKernel<c10::Half>", "normalization"),
        ("void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda", "layout and copies"),
        ("void at::native::vectorized_elementwise_kernel<8, CUDAFunctor_add<c10::Half>>", "elementwise"),
        ("something new", "other"),
    ],
)
def test_kernels_are_told_apart_by_their_names(kernel: str, kind: str) -> None:
    assert tasks.kind_of(kernel) == kind
