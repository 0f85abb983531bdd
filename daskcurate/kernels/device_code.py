"""CUDA source of the few steps that array functions alone do in too many passes over memory, or in no fixed order.

Each computes what a NumPy expression does. There are no atomics, so that results have the same bits every time.
"""

TOP_TWO = r"""
extern "C" __global__ void top_two(
    const float* scores, const float* factors, const float* halves, const int scaled,
    const long long columns, long long* best, float* top, float* second)
{
    // one block a row; its number of threads is a power of two, 256 at most
    __shared__ float held_top[256];
    __shared__ float held_second[256];
    __shared__ long long held_at[256];
    const long long row = blockIdx.x;
    const float* own = scores + row * columns;
    const float factor = scaled ? factors[row] : 1.0f;
    float first = __int_as_float(0xff800000), other = first;  // minus infinity
    long long at = columns;
    for (long long j = threadIdx.x; j < columns; j += blockDim.x) {
        const float score = scaled ? factor * own[j] - halves[j] : own[j];
        if (at == columns || score > first) {
            other = first;
            first = score;
            at = j;
        } else if (score > other) {
            other = score;
        }
    }
    const int me = threadIdx.x;
    held_top[me] = first;
    held_second[me] = other;
    held_at[me] = at;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (me < half) {
            const float a = held_top[me], b = held_top[me + half];
            const long long i = held_at[me], j = held_at[me + half];
            const bool swap = j < columns && (i == columns || b > a || (b == a && j < i));
            const float larger = held_second[me] > held_second[me + half]
                ? held_second[me] : held_second[me + half];
            const float loser = swap ? a : b;
            if (swap) {
                held_top[me] = b;
                held_at[me] = j;
            }
            held_second[me] = loser > larger ? loser : larger;
        }
        __syncthreads();
    }
    if (me == 0) {
        best[row] = held_at[0];
        top[row] = held_top[0];
        second[row] = held_second[0];
    }
}
"""

SEGMENT_SUMS = r"""
extern "C" __global__ void segment_sums(
    const float* rows, const long long* order, const long long* starts, const long long width, double* sums)
{
    // a block a segment and 128 columns; a thread adds up one column, row after row
    const long long column = (long long)blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const long long segment = blockIdx.x;
    const long long stop = starts[segment + 1];
    double sum = 0.0;
    #pragma unroll 8
    for (long long i = starts[segment]; i < stop; i++) {
        sum += (double)rows[order[i] * width + column];
    }
    sums[segment * width + column] = sum;
}
"""

ROW_DOTS = r"""
extern "C" __global__ void row_dots_TYPE(
    const TYPE* a, const long long lead_a, const TYPE* b, const long long lead_b, const long long width, TYPE* dots)
{
    // one block of 64 threads a row: the order of a sum depends on the width alone, not on where a row lies
    __shared__ TYPE held[64];
    const long long row = blockIdx.x;
    const int me = threadIdx.x;
    TYPE sum = 0;
    for (long long j = me; j < width; j += 64) sum += a[row * lead_a + j] * b[row * lead_b + j];
    held[me] = sum;
    __syncthreads();
    for (int half = 32; half > 0; half /= 2) {
        if (me < half) held[me] += held[me + half];
        __syncthreads();
    }
    if (me == 0) dots[row] = held[0];
}
"""

SOURCES = {
    "top_two": TOP_TWO,
    "segment_sums": SEGMENT_SUMS,
    "row_dots_float": ROW_DOTS.replace("TYPE", "float"),
    "row_dots_double": ROW_DOTS.replace("TYPE", "double"),
}
"""By the name of the kernel."""
