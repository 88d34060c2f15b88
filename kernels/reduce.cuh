// Sums over the threads of a block, in a fixed order: the same bits at every run, no atomics.

__device__ inline REAL warp_sum(REAL v) {
    for (int step = 16; step > 0; step /= 2) v += __shfl_down_sync(0xffffffffu, v, step);
    return v;  // complete in lane 0
}

// Sums over the warp of N numbers in each lane, in 31 shuffles instead of 5 N: at every step a lane hands half of its
// numbers to its partner and keeps the sums of the other half, until lane k holds sum k.  In the end all lanes have all
// sums.  `exchange` is shared memory for 32 numbers of this warp.
template <int N> __device__ inline void warp_sums(REAL (&v)[N], REAL* exchange, int lane) {
    static_assert(N <= 32, "one sum in each lane");
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const bool upper = lane & step;
#pragma unroll
        for (int k = 0; k < step; k++) {
            if (k >= N) break;
            const REAL low = v[k], high = k + step < N ? v[k + step] : REAL(0);
            v[k] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, step);
        }
    }
    exchange[lane] = v[0];
    __syncwarp();
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = exchange[k];
    __syncwarp();
}

// The same for up to 64 numbers: first 32 of them, then the rest.
template <int N> __device__ inline void warp_sums_of_many(REAL (&v)[N], REAL* exchange, int lane) {
    if constexpr (N <= 32) {
        warp_sums(v, exchange, lane);
    } else {
        REAL first[32], rest[N - 32];
#pragma unroll
        for (int k = 0; k < 32; k++) first[k] = v[k];
#pragma unroll
        for (int k = 32; k < N; k++) rest[k - 32] = v[k];
        warp_sums(first, exchange, lane);
        warp_sums(rest, exchange, lane);
#pragma unroll
        for (int k = 0; k < N; k++) v[k] = k < 32 ? first[k % 32] : rest[k < 32 ? 0 : k - 32];
    }
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
