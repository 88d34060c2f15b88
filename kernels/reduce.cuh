// Sums over the threads of a block, in a fixed order: the same bits at every run, no atomics.

__device__ inline REAL warp_sum(REAL v) {
    for (int step = 16; step > 0; step /= 2) v += __shfl_down_sync(0xffffffffu, v, step);
    return v;  // complete in lane 0
}

// Sum of v over the block, complete in thread 0.  `scratch` is shared memory for one number per warp; blockDim.x is a
// multiple of 32.  Safe to call again at once with the same scratch.
__device__ inline REAL block_sum(REAL v, REAL* scratch) {
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    const int warps = blockDim.x / 32;
    if (threadIdx.x < 32) v = warp_sum(threadIdx.x < warps ? scratch[threadIdx.x] : REAL(0));
    __syncthreads();
    return v;
}
