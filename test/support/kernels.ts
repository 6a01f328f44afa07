/**
 * The kernels of the tests, twice: as handwritten PTX, and as functions for simulated devices.
 */
import { CudaParameter, CudaProgram } from "effect-cuda"
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"

const {
  array,
  bf16,
  bool,
  f16,
  f32,
  f64,
  i16,
  i32,
  i64,
  i8,
  input,
  nullable,
  output,
  pointer,
  struct,
  u16,
  u32,
  u64,
  u8
} = CudaParameter

/** A struct with inner and trailing padding, a nested struct, and a pointer. */
const record = struct({ tag: u8, at: struct({ x: f64, y: f32 }), to: nullable(pointer), last: u16 })

/** A struct with its own alignment, like `float4`. */
const vector = struct({ x: f32, y: f32, z: f32, w: f32 }, { align: 16 })

/** 32 parameters of every kind. The first points to where the kernel writes the bytes of the others. */
export const every = [
  output,
  u8,
  i64,
  i8,
  u16,
  i16,
  f16,
  bf16,
  u32,
  bool,
  i32,
  f32,
  u8,
  u64,
  f64,
  i8,
  record,
  u8,
  vector,
  i16,
  array(u8, 3),
  array(u16, 5),
  u8,
  array(record, 2),
  nullable(input),
  u8,
  array(f64, 2),
  f32,
  bf16,
  array(nullable(pointer), 2),
  i64,
  bool
] as const

/** The offset of each parameter in C layout. */
export const offsetsOf = (kinds: ReadonlyArray<CudaParameter.ParameterKind>): ReadonlyArray<number> => {
  let end = 0
  return kinds.map(({ align, size }) => {
    const offset = end + (align - end % align) % align
    end = offset + size
    return offset
  })
}

const declaration = ({ align, kind, size }: CudaParameter.ParameterKind, index: number): string =>
  kind === "struct" || kind === "array"
    ? `.param .align ${align} .b8 p${index}[${size}]`
    : `.param .b${8 * size} p${index}`

/** Copies a parameter to its offset among the arguments, starting at the address in %out. */
const copyParameter = (kind: CudaParameter.ParameterKind, index: number, offset: number): string => {
  const isWhole = kind.kind !== "struct" && kind.kind !== "array"
  const bits = isWhole ? 8 * kind.size : 8
  const register = bits === 64 ? "%l1" : bits === 32 ? "%w1" : "%h1"
  return Array.from(
    { length: isWhole ? 1 : kind.size },
    (_, byte) =>
      `  ld.param.b${bits} ${register}, [p${index}+${byte}];\n  st.global.b${bits} [%out+${
        offset + byte
      }], ${register};`
  )
    .join("\n")
}

const everyPtx = (): string => {
  const offsets = offsetsOf(every)
  const copies = every.map((kind, index) => copyParameter(kind, index, offsets[index]!))
  return `.visible .entry every(
${every.map(declaration).join(",\n")})
{
  .reg .b64 %out, %l1;
  .reg .b32 %w1;
  .reg .b16 %h1;
  ld.param.b64 %out, [p0];
${copies.join("\n")}
  ret;
}
`
}

const ptx = `
.version 7.0
.target sm_70
.address_size 64
.visible .global .align 4 .u32 counter = 5;
.extern .shared .align 4 .b8 dynamic[];
.visible .entry nothing()
{
  ret;
}
.visible .entry add(.param .u64 to, .param .u64 from, .param .u32 count)
{
  .reg .pred %outside;
  .reg .b32 %r<5>;
  .reg .f32 %f<3>;
  .reg .b64 %a<4>;
  mov.u32 %r1, %ctaid.x;
  mov.u32 %r2, %ntid.x;
  mov.u32 %r3, %tid.x;
  mad.lo.u32 %r3, %r1, %r2, %r3;
  ld.param.u32 %r4, [count];
  setp.ge.u32 %outside, %r3, %r4;
  @%outside bra done;
  ld.param.u64 %a1, [to];
  ld.param.u64 %a2, [from];
  mul.wide.u32 %a3, %r3, 4;
  add.u64 %a1, %a1, %a3;
  add.u64 %a2, %a2, %a3;
  ld.global.f32 %f1, [%a1];
  ld.global.f32 %f2, [%a2];
  add.f32 %f1, %f1, %f2;
  st.global.f32 [%a1], %f1;
done:
  ret;
}
.visible .entry put(.param .u64 to, .param .u32 value)
{
  .reg .b32 %r1;
  .reg .b64 %a1;
  ld.param.u64 %a1, [to];
  ld.param.u32 %r1, [value];
  st.global.u32 [%a1], %r1;
  ret;
}
.visible .entry sizes(.param .u64 to)
{
  .reg .b32 %r1;
  .reg .b64 %a1;
  ld.param.u64 %a1, [to];
${
  ["ntid.x", "ntid.y", "ntid.z", "nctaid.x", "nctaid.y", "nctaid.z", "dynamic_smem_size"].map((name, index) =>
    `  mov.u32 %r1, %${name};\n  st.global.u32 [%a1+${4 * index}], %r1;`
  ).join("\n")
}
  ret;
}
.visible .entry small(.param .u64 to) .maxntid 64, 1, 1
{
  ret;
}
.visible .entry bump(.param .u64 to)
{
  .reg .b32 %r1;
  .reg .b64 %a1;
  ld.global.u32 %r1, [counter];
  add.u32 %r1, %r1, 1;
  st.global.u32 [counter], %r1;
  ld.param.u64 %a1, [to];
  st.global.u32 [%a1], %r1;
  ret;
}
.visible .entry outside()
{
  .reg .b64 %a1;
  .reg .b32 %r1;
  mov.u64 %a1, 64;
  mov.u32 %r1, 1;
  st.global.u32 [%a1], %r1;
  ret;
}
${everyPtx()}`

const clusterPtx = `
.version 7.8
.target sm_90
.address_size 64
.visible .entry clusters(.param .u64 to)
{
  .reg .b32 %r1;
  .reg .b64 %a1;
  ld.param.u64 %a1, [to];
${
  ["x", "y", "z"].map((axis, index) =>
    `  mov.u32 %r1, %cluster_nctaid.${axis};\n  st.global.u32 [%a1+${4 * index}], %r1;`
  ).join("\n")
}
  ret;
}
`

/** The kernels for every device. */
export const program = CudaProgram.fromBytes(ptx, { name: "kernels.ptx" })

/** A kernel that reports its clusters, for devices that have them. */
export const clusterProgram = CudaProgram.fromBytes(clusterPtx, { name: "clusters.ptx" })

/** PTX that the driver's compiler rejects at line 8. */
export const brokenProgram = CudaProgram.fromBytes(
  ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry broken()\n{\n  .reg .b32 %r1;\n\n  broken.u32 %r1;\n}\n",
  { name: "broken.ptx" }
)

/** The parameters of each kernel. */
export const signatures = {
  nothing: [],
  add: [pointer, input, u32],
  put: [output, u32],
  sizes: [output],
  small: [output],
  bump: [output],
  outside: [],
  clusters: [output]
} as const

const cost = "10 micros"

/** The same kernels as functions. */
export const simulatedKernels: Readonly<Record<string, SimulatedRuntime.SimulatedKernel>> = {
  nothing: SimulatedRuntime.kernel({ parameters: signatures.nothing, cost, run: () => {} }),
  add: SimulatedRuntime.kernel({
    parameters: signatures.add,
    cost,
    run: ({ args: [to, from, count], block, grid }) => {
      const [sum, other] = [to.view(Float32Array, count), from.view(Float32Array, count)]
      for (let index = 0; index < Math.min(count, grid.x * block.x); index++) sum[index]! += other[index]!
    }
  }),
  put: SimulatedRuntime.kernel({
    parameters: signatures.put,
    cost,
    run: ({ args: [to, value] }) => to.store("u32", 0, value)
  }),
  sizes: SimulatedRuntime.kernel({
    parameters: signatures.sizes,
    cost,
    run: ({ args: [to], block, grid, sharedBytes }) =>
      to.view(Uint32Array, 7).set([block.x, block.y, block.z, grid.x, grid.y, grid.z, sharedBytes])
  }),
  small: SimulatedRuntime.kernel({
    parameters: signatures.small,
    cost,
    attributes: { maxThreadsPerBlock: 64 },
    run: () => {}
  }),
  bump: SimulatedRuntime.kernel({
    parameters: signatures.bump,
    cost,
    run: ({ args: [to], global }) => {
      const value = global("counter").load("u32", 0) + 1
      global("counter").store("u32", 0, value)
      to.store("u32", 0, value)
    }
  }),
  outside: SimulatedRuntime.kernel({ parameters: [], cost, run: ({ fault }) => fault("IllegalAddress") }),
  clusters: SimulatedRuntime.kernel({
    parameters: signatures.clusters,
    cost,
    run: ({ args: [to], cluster }) => to.view(Uint32Array, 3).set([cluster.x, cluster.y, cluster.z])
  }),
  every: SimulatedRuntime.kernel({
    parameters: every,
    cost,
    run: ({ args }) => {
      const bytes = new DataView(args[0].view(ArrayBufferBytes).buffer)
      const start = args[0].view(ArrayBufferBytes).byteOffset
      for (const [index, offset] of offsetsOf(every).entries()) write(bytes, start + offset, every[index]!, args[index])
    }
  })
}

const ArrayBufferBytes = Uint8Array<ArrayBuffer>

/** The bytes of an argument: of a value that a launch is given, or that a kernel received. */
export const argumentBytes = (kind: CudaParameter.ParameterKind, value: unknown): Uint8Array<ArrayBuffer> => {
  const bytes = new Uint8Array(kind.size)
  write(new DataView(bytes.buffer), 0, kind, value)
  return bytes
}

/** Writes the bytes of an argument. */
const write = (view: DataView, at: number, kind: CudaParameter.ParameterKind, value: unknown): void => {
  const number = typeof value === "number" ? value : 0
  switch (kind.kind) {
    case "pointer":
      return view.setBigUint64(at, BigInt(addressOf(value)), true)
    case "struct":
      for (const [name, field] of Object.entries(kind.fields)) {
        write(view, at + kind.offsets[name]!, field, Object(value)[name])
      }
      return
    case "array":
      for (let index = 0; index < kind.length; index++) {
        write(view, at + index * kind.element.size, kind.element, Object(value)[index])
      }
      return
    case "i64":
      return view.setBigInt64(at, wholeOf(value), true)
    case "u64":
      return view.setBigUint64(at, wholeOf(value), true)
    case "f64":
      return view.setFloat64(at, number, true)
    case "f32":
      return view.setFloat32(at, number, true)
    case "f16":
    case "bf16":
      return view.setUint16(at, halves(kind.kind, number), true)
    case "bool":
      return view.setUint8(at, value === true ? 1 : 0)
    default:
      return kind.size === 4 ? view.setInt32(at, number, true) : kind.size === 2
        ? view.setInt16(at, number, true)
        : view.setInt8(at, number)
  }
}

const wholeOf = (value: unknown): bigint => typeof value === "bigint" || typeof value === "number" ? BigInt(value) : 0n

/** The address of memory or of a part of it; 0 for `null`. */
const addressOf = (value: unknown): number => {
  if (typeof value !== "object" || value === null) return 0
  if ("address" in value) return Number(value.address)
  return "buffer" in value && "offset" in value ? addressOf(value.buffer) + Number(value.offset) : 0
}

/** The bits of numbers that are exact in 16 bits. */
const halves = (kind: "f16" | "bf16", value: number): number => {
  const bits = new DataView(new ArrayBuffer(4))
  bits.setFloat32(0, value)
  const word = bits.getUint32(0)
  if (kind === "bf16" || value === 0) return word >>> 16
  return ((word >>> 16) & 0x8000) | ((((word >>> 23) & 0xff) - 112) << 10) | ((word >>> 13) & 0x3ff)
}
