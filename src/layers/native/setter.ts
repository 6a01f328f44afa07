/**
 * The kernel that passes a value in device memory to a condition of a graph, as PTX. `cudaGraphSetConditional` is a function of the
 * device runtime that the driver provides itself.
 */
const ptx = `.version 6.4
.target sm_52
.address_size 64
.extern .func cudaGraphSetConditional(.param .b64 condition, .param .b32 holds);
.visible .entry effect_cuda_condition(
  .param .u64 condition, .param .u64 value, .param .u32 expected, .param .u32 negated)
{
  .reg .pred %equal;
  .reg .b32 %value, %expected, %negated, %holds;
  .reg .b64 %condition, %address;
  ld.param.u64 %condition, [condition];
  ld.param.u64 %address, [value];
  ld.param.u32 %expected, [expected];
  ld.param.u32 %negated, [negated];
  cvta.to.global.u64 %address, %address;
  ld.global.u32 %value, [%address];
  setp.eq.u32 %equal, %value, %expected;
  selp.u32 %holds, 1, 0, %equal;
  xor.b32 %holds, %holds, %negated;
  {
    .param .b64 to;
    .param .b32 what;
    st.param.b64 [to], %condition;
    st.param.b32 [what], %holds;
    call.uni cudaGraphSetConditional, (to, what);
  }
  ret;
}
`

/** The image, with the NUL that ends PTX. */
export const setterImage = new TextEncoder().encode(`${ptx}\0`)
