/**
 * Kernel parameters: their kinds, which determine the types and the memory layout of a kernel's arguments.
 *
 * Depends on the layouts in `cuda/` and on the types of the `CudaRuntime` interface.
 *
 * @since 0.1.0
 */
import { elementWords, isElementType } from "./cuda/elements.ts"
import { alignUp, layOut, pointerSize, scalarSizes } from "./cuda/parameters.ts"
import type {
  ArrayKind,
  ElementType,
  ParameterKind,
  PointerKind,
  ScalarKind,
  ScalarName,
  StructFields,
  StructKind
} from "./cuda/parameters.ts"
import type { Address, KernelArgument, KernelArguments, RawAddress } from "./layers/CudaRuntime.ts"

export type {
  /**
   * An array passed by value.
   *
   * @category models
   * @since 0.1.0
   */
  ArrayKind,
  /**
   * The argument type of a kind of parameter.
   *
   * @category models
   * @since 0.1.0
   */
  KernelArgument,
  /**
   * The argument types of a kernel with these parameters, in order.
   *
   * @category models
   * @since 0.1.0
   */
  KernelArguments,
  /**
   * A kind of parameter.
   *
   * @category models
   * @since 0.1.0
   */
  ParameterKind,
  /**
   * A pointer to memory.
   *
   * @category models
   * @since 0.1.0
   */
  PointerKind,
  /**
   * An address that the runtime does not manage.
   *
   * @category models
   * @since 0.1.0
   */
  RawAddress,
  /**
   * A number or a boolean.
   *
   * @category models
   * @since 0.1.0
   */
  ScalarKind,
  /**
   * A struct passed by value.
   *
   * @category models
   * @since 0.1.0
   */
  StructKind
}

const scalar = <Name extends ScalarName>(kind: Name): ScalarKind<Name> =>
  Object.freeze({ kind, size: scalarSizes[kind], align: scalarSizes[kind] })

/**
 * A signed 8-bit integer: `int8_t`, `signed char`.
 *
 * **Example** (A kernel with a number)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import type { CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.i8])
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [1])
 * })
 * ```
 *
 * @category scalars
 * @since 0.1.0
 */
export const i8: ScalarKind<"i8"> = scalar("i8")

/**
 * An unsigned 8-bit integer: `uint8_t`, `unsigned char`.
 *
 * **Example** (A kernel with a number)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import type { CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.u8])
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [1])
 * })
 * ```
 *
 * @category scalars
 * @since 0.1.0
 */
export const u8: ScalarKind<"u8"> = scalar("u8")

/**
 * A signed 16-bit integer: `int16_t`, `short`.
 *
 * **Example** (A kernel with a number)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import type { CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.i16])
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [1])
 * })
 * ```
 *
 * @category scalars
 * @since 0.1.0
 */
export const i16: ScalarKind<"i16"> = scalar("i16")

/**
 * An unsigned 16-bit integer: `uint16_t`, `unsigned short`; also the bits of a `__half` or `__nv_bfloat16`.
 *
 * **Example** (A kernel with a number)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import type { CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.u16])
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [1])
 * })
 * ```
 *
 * @category scalars
 * @since 0.1.0
 */
export const u16: ScalarKind<"u16"> = scalar("u16")

/**
 * A signed 32-bit integer: `int32_t`, `int`.
 *
 * **Example** (A kernel with a number)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import type { CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.i32])
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [1])
 * })
 * ```
 *
 * @category scalars
 * @since 0.1.0
 */
export const i32: ScalarKind<"i32"> = scalar("i32")

/**
 * An unsigned 32-bit integer: `uint32_t`, `unsigned`.
 *
 * **Example** (A kernel with a number)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import type { CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.u32])
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [1])
 * })
 * ```
 *
 * @category scalars
 * @since 0.1.0
 */
export const u32: ScalarKind<"u32"> = scalar("u32")

/**
 * A signed 64-bit integer: `int64_t`, `long long`. Pass a `bigint`, or an integer `number` of magnitude up to 2^53.
 *
 * **Example** (A kernel with a large number)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import type { CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.i64])
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [2n ** 40n])
 * })
 * ```
 *
 * @category scalars
 * @since 0.1.0
 */
export const i64: ScalarKind<"i64"> = scalar("i64")

/**
 * An unsigned 64-bit integer: `uint64_t`, `size_t`. Pass a `bigint`, or an integer `number` up to 2^53.
 *
 * **Example** (A kernel with a large number)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import type { CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.u64])
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [2n ** 40n])
 * })
 * ```
 *
 * @category scalars
 * @since 0.1.0
 */
export const u64: ScalarKind<"u64"> = scalar("u64")

/**
 * A half-precision float (`__half`). The number is rounded to the nearest 16-bit value.
 *
 * **Example** (A kernel with a number)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import type { CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.f16])
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [1])
 * })
 * ```
 *
 * @category scalars
 * @since 0.1.0
 */
export const f16: ScalarKind<"f16"> = scalar("f16")

/**
 * A bfloat16 (`__nv_bfloat16`). The number is rounded to the nearest 16-bit value.
 *
 * **Example** (A kernel with a number)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import type { CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.bf16])
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [1])
 * })
 * ```
 *
 * @category scalars
 * @since 0.1.0
 */
export const bf16: ScalarKind<"bf16"> = scalar("bf16")

/**
 * A single-precision float (`float`). The number is rounded to the nearest 32-bit value.
 *
 * **Example** (A kernel with a number)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import type { CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.f32])
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [1])
 * })
 * ```
 *
 * @category scalars
 * @since 0.1.0
 */
export const f32: ScalarKind<"f32"> = scalar("f32")

/**
 * A double-precision float (`double`).
 *
 * **Example** (A kernel with a number)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import type { CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.f64])
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [1])
 * })
 * ```
 *
 * @category scalars
 * @since 0.1.0
 */
export const f64: ScalarKind<"f64"> = scalar("f64")

/**
 * A boolean (`bool`).
 *
 * **Example** (A kernel with a flag)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import type { CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.bool])
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [true])
 * })
 * ```
 *
 * @category scalars
 * @since 0.1.0
 */
export const bool: ScalarKind<"bool"> = scalar("bool")

const pointerKind = <Nullable extends boolean, Element extends ElementType | undefined>(
  access: PointerKind["access"],
  nullable: Nullable,
  element: Element
): PointerKind<Nullable, Element> =>
  Object.freeze({ kind: "pointer", size: pointerSize, align: pointerSize, access, nullable, element })

/**
 * A pointer to memory that the kernel reads and writes: a buffer or a part of one.
 *
 * **Details**
 *
 * The memory lives until the kernel is done, even if its buffer is released earlier. For an ordered buffer, the launch waits for
 * conflicting uses of the given part on other streams, as a copy does.
 *
 * Device memory must be on the stream's device. Kernels also accept pinned memory on devices that access it by its host address
 * (`CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM`).
 *
 * **Gotchas**
 *
 * A part only determines the pointer's address and which bytes are ordered. The kernel can still access memory outside it.
 *
 * **Example** (A kernel with memory)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import type { CudaMemory, CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 * declare const buffer: CudaMemory.DeviceBuffer
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.pointer])
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [buffer])
 * })
 * ```
 *
 * @category pointers
 * @since 0.1.0
 */
export const pointer: PointerKind<false, undefined> = pointerKind("readWrite", false, undefined)

/**
 * A pointer to memory that the kernel only reads (`const T*`). Launches that read the same ordered buffer do not wait for each other.
 *
 * **Example** (A kernel with memory)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import type { CudaMemory, CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 * declare const buffer: CudaMemory.DeviceBuffer
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.input])
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [buffer])
 * })
 * ```
 *
 * @category pointers
 * @since 0.1.0
 */
export const input: PointerKind<false, undefined> = pointerKind("read", false, undefined)

/**
 * A pointer to memory that the kernel only writes.
 *
 * **Example** (A kernel with memory)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import type { CudaMemory, CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 * declare const buffer: CudaMemory.DeviceBuffer
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.output])
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [buffer])
 * })
 * ```
 *
 * @category pointers
 * @since 0.1.0
 */
export const output: PointerKind<false, undefined> = pointerKind("write", false, undefined)

const elementPointer = <Type extends ElementType>(
  operation: string,
  access: PointerKind["access"],
  type: Type
): PointerKind<false, Type> => {
  if (!isElementType(type)) throw new RangeError(`${operation}: the type is ${String(type)}; expected ${elementWords}`)
  return pointerKind(access, false, type)
}

/**
 * A pointer to elements of a type that the kernel reads and writes (`float*` for `f32`): a typed array of `CudaMemory` or elements of one.
 *
 * **Details**
 *
 * Memory of another element type does not compile, and fails with `InvalidArgument` if forced. Neither does a buffer without a type,
 * since nothing says what its bytes are: `CudaMemory.typed` does. Otherwise like `pointer`, which accepts typed arrays of any type. Costs a
 * launch a comparison.
 *
 * Simulated kernels get the memory as `array`, the typed array of JavaScript for the type. Throws a `RangeError` for an unknown type.
 *
 * **Example** (A kernel that scales floats by an index)
 *
 * ```ts
 * import { CudaKernel, CudaMemory, CudaParameter } from "effect-cuda"
 * import type { CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const program = Effect.gen(function*() {
 *   const { inputOf, outputOf, u32 } = CudaParameter
 *   const scale = yield* CudaKernel.get(module, "scale", [outputOf("f32"), inputOf("f32"), u32])
 *   const input = yield* CudaMemory.fromArray(Float32Array.of(1, 2, 3, 4))
 *   const output = yield* CudaMemory.array("f32", input.length)
 *   yield* CudaKernel.launch(scale, { grid: 1, block: 32 }, [output, input, input.length])
 *   return yield* CudaMemory.toArray(output)
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category pointers
 * @since 0.1.0
 */
export const pointerOf = <const Type extends ElementType>(type: Type): PointerKind<false, Type> =>
  elementPointer("CudaParameter.pointerOf", "readWrite", type)

/**
 * A pointer to elements of a type that the kernel only reads (`const float*` for `f32`). See `pointerOf` and `input`.
 *
 * **Example** (A kernel that reads floats)
 *
 * ```ts
 * import { CudaKernel, CudaMemory, CudaParameter } from "effect-cuda"
 * import type { CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.inputOf("f32")])
 *   const values = yield* CudaMemory.fromArray(Float32Array.of(1, 2, 3))
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [values])
 * })
 * ```
 *
 * @category pointers
 * @since 0.1.0
 */
export const inputOf = <const Type extends ElementType>(type: Type): PointerKind<false, Type> =>
  elementPointer("CudaParameter.inputOf", "read", type)

/**
 * A pointer to elements of a type that the kernel only writes. See `pointerOf` and `output`.
 *
 * **Example** (A kernel that writes floats)
 *
 * ```ts
 * import { CudaKernel, CudaMemory, CudaParameter } from "effect-cuda"
 * import type { CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.outputOf("f32")])
 *   const values = yield* CudaMemory.array("f32", 32)
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [values])
 *   return yield* CudaMemory.toArray(values)
 * })
 * ```
 *
 * @category pointers
 * @since 0.1.0
 */
export const outputOf = <const Type extends ElementType>(type: Type): PointerKind<false, Type> =>
  elementPointer("CudaParameter.outputOf", "write", type)

/**
 * Makes a kind of pointer that also accepts `null`.
 *
 * **Example** (Memory that may be missing)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import type { CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.nullable(CudaParameter.input)])
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [null])
 * })
 * ```
 *
 * @category pointers
 * @since 0.1.0
 */
export const nullable = <Element extends ElementType | undefined>(
  kind: PointerKind<boolean, Element>
): PointerKind<true, Element> => pointerKind(kind.access, true, kind.element)

/**
 * Passes a raw address as a pointer, for memory that no buffer represents, such as memory of other native code.
 *
 * **Gotchas**
 *
 * The runtime cannot check whether the device can access the memory, how long it lives, or what else uses it.
 *
 * **Example** (An address of other code)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 *
 * declare const kernel: CudaKernel.CudaKernel<readonly [typeof CudaParameter.pointer]>
 * declare const theirs: number
 *
 * const launched = CudaKernel.launch(kernel, { grid: 1, block: 32 }, [CudaParameter.address(theirs)])
 * ```
 *
 * @category pointers
 * @since 0.1.0
 */
export const address = (value: number): RawAddress => ({ address: value as Address })

/**
 * A struct passed by value, with its fields in this order and aligned as in C.
 *
 * **Details**
 *
 * Set `align` for types with a larger alignment than that of their fields, such as `float4` (16 bytes). Throws a `RangeError` if there are no fields, if a
 * field's name is a number (JavaScript would move it to the front), or if the alignment is not a power of two.
 *
 * **Example** (`struct Range { unsigned first; double scale; }`)
 *
 * ```ts
 * import { CudaParameter } from "effect-cuda"
 *
 * const range = CudaParameter.struct({ first: CudaParameter.u32, scale: CudaParameter.f64 })
 * // 16 bytes; an argument is { first: 1, scale: 0.5 }
 * ```
 *
 * @category aggregates
 * @since 0.1.0
 */
export const struct = <const Fields extends StructFields>(
  fields: Fields,
  options: {
    /** Bytes. Default: the largest alignment of the fields. */
    readonly align?: number | undefined
  } = {}
): StructKind<Fields> => {
  const names = Object.keys(fields)
  const { align = 1 } = options
  if (names.length === 0 || names.some((name) => /^\d+$/.test(name))) {
    throw new RangeError("CudaParameter.struct: a struct needs at least one field, and no field's name may be a number")
  }
  if (!Number.isInteger(Math.log2(align)) || align < 1) {
    throw new RangeError(`CudaParameter.struct: the alignment ${align} is not a power of two`)
  }
  const layout = layOut(Object.values(fields))
  const aligned = Math.max(align, layout.align)
  return Object.freeze({
    kind: "struct",
    fields,
    offsets: Object.fromEntries(names.map((name, index) => [name, layout.offsets[index]!])),
    size: alignUp(layout.size, aligned),
    align: aligned
  })
}

/**
 * A fixed-length array passed by value, as the only field of a struct. Arguments are arrays or typed arrays of that length. Throws a
 * `RangeError` if the length is not a positive integer.
 *
 * **Example** (Three numbers by value)
 *
 * ```ts
 * import { CudaKernel, CudaParameter } from "effect-cuda"
 * import type { CudaModule } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * declare const module: CudaModule.CudaModule
 *
 * const launched = Effect.gen(function*() {
 *   const kernel = yield* CudaKernel.get(module, "work", [CudaParameter.array(CudaParameter.f32, 3)])
 *   yield* CudaKernel.launch(kernel, { grid: 1, block: 32 }, [[1, 2, 3]])
 * })
 * ```
 *
 * @category aggregates
 * @since 0.1.0
 */
export const array = <Element extends ParameterKind>(element: Element, length: number): ArrayKind<Element> => {
  if (!Number.isSafeInteger(length) || length < 1) {
    throw new RangeError(`CudaParameter.array: the length is ${length}; expected a positive integer`)
  }
  return Object.freeze({ kind: "array", element, length, size: element.size * length, align: element.align })
}
