/**
 * Parameters of kernels: the kinds that a parameter can have, from which the types and the layout of arguments follow.
 *
 * Depends on the layouts of `cuda/` and on the types of the `CudaRuntime` interface.
 *
 * @since 0.1.0
 */
import { alignUp, layOut, pointerSize, scalarSizes } from "./cuda/parameters.ts"
import type {
  ArrayKind,
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
   * The value that a kind of parameter takes as its argument.
   *
   * @category models
   * @since 0.1.0
   */
  KernelArgument,
  /**
   * The arguments of a kernel with these parameters, in order.
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
   * An address that the runtime knows nothing about.
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
 * `int8_t`, `signed char`.
 *
 * @category scalars
 * @since 0.1.0
 */
export const i8: ScalarKind<"i8"> = scalar("i8")

/**
 * `uint8_t`, `unsigned char`.
 *
 * @category scalars
 * @since 0.1.0
 */
export const u8: ScalarKind<"u8"> = scalar("u8")

/**
 * `int16_t`, `short`.
 *
 * @category scalars
 * @since 0.1.0
 */
export const i16: ScalarKind<"i16"> = scalar("i16")

/**
 * `uint16_t`, `unsigned short`; also a `__half` or `__nv_bfloat16` that is given by its bits.
 *
 * @category scalars
 * @since 0.1.0
 */
export const u16: ScalarKind<"u16"> = scalar("u16")

/**
 * `int32_t`, `int`.
 *
 * @category scalars
 * @since 0.1.0
 */
export const i32: ScalarKind<"i32"> = scalar("i32")

/**
 * `uint32_t`, `unsigned`.
 *
 * @category scalars
 * @since 0.1.0
 */
export const u32: ScalarKind<"u32"> = scalar("u32")

/**
 * `int64_t`, `long long`: a `bigint`, or a whole number up to 2^53.
 *
 * @category scalars
 * @since 0.1.0
 */
export const i64: ScalarKind<"i64"> = scalar("i64")

/**
 * `uint64_t`, `size_t`: a `bigint`, or a whole number up to 2^53.
 *
 * @category scalars
 * @since 0.1.0
 */
export const u64: ScalarKind<"u64"> = scalar("u64")

/**
 * `__half`: a number, rounded to the nearest of 16 bits.
 *
 * @category scalars
 * @since 0.1.0
 */
export const f16: ScalarKind<"f16"> = scalar("f16")

/**
 * `__nv_bfloat16`: a number, rounded to the nearest of 16 bits.
 *
 * @category scalars
 * @since 0.1.0
 */
export const bf16: ScalarKind<"bf16"> = scalar("bf16")

/**
 * `float`: a number, rounded to the nearest of 32 bits.
 *
 * @category scalars
 * @since 0.1.0
 */
export const f32: ScalarKind<"f32"> = scalar("f32")

/**
 * `double`.
 *
 * @category scalars
 * @since 0.1.0
 */
export const f64: ScalarKind<"f64"> = scalar("f64")

/**
 * `bool`.
 *
 * @category scalars
 * @since 0.1.0
 */
export const bool: ScalarKind<"bool"> = scalar("bool")

const pointerKind = <Nullable extends boolean>(
  access: PointerKind["access"],
  nullable: Nullable
): PointerKind<Nullable> => Object.freeze({ kind: "pointer", size: pointerSize, align: pointerSize, access, nullable })

/**
 * A pointer to memory that the kernel reads and writes: a buffer or a part of one.
 *
 * **Details**
 *
 * The memory lives until the kernel is done, also when its buffer is released before. A buffer that orders itself is ordered
 * by the part that is given: the launch waits for the uses on other streams that it conflicts with, as a copy does.
 *
 * Device memory is that of the stream's device. Pinned memory is given to kernels too, where they reach it by its address on
 * the host (`CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM`).
 *
 * **Gotchas**
 *
 * A part says where the pointer points to and what is ordered; nothing keeps the kernel from leaving it.
 *
 * @category pointers
 * @since 0.1.0
 */
export const pointer: PointerKind<false> = pointerKind("readWrite", false)

/**
 * A pointer to memory that the kernel only reads (`const T*`): launches that read a buffer that orders itself do not wait
 * for each other.
 *
 * @category pointers
 * @since 0.1.0
 */
export const input: PointerKind<false> = pointerKind("read", false)

/**
 * A pointer to memory that the kernel only writes.
 *
 * @category pointers
 * @since 0.1.0
 */
export const output: PointerKind<false> = pointerKind("write", false)

/**
 * A pointer that may be `null`.
 *
 * @category pointers
 * @since 0.1.0
 */
export const nullable = (kind: PointerKind): PointerKind<true> => pointerKind(kind.access, true)

/**
 * An address for a pointer that no buffer stands for, such as memory of other native code.
 *
 * **Gotchas**
 *
 * Nothing is known of it: whether the device can use it, how long it lives, what else uses it.
 *
 * @category pointers
 * @since 0.1.0
 */
export const address = (value: number): RawAddress => ({ address: value as Address })

/**
 * A struct by value, its fields in this order and aligned as C does it.
 *
 * **Details**
 *
 * `align` is for types with an alignment of their own, such as `float4` (16). Like a typed array's constructor this throws a
 * `RangeError`, for no fields, for names that are numbers, which JavaScript would put first, and for an alignment that is no
 * power of two.
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
  options: { readonly align?: number | undefined } = {}
): StructKind<Fields> => {
  const names = Object.keys(fields)
  const { align = 1 } = options
  if (names.length === 0 || names.some((name) => /^\d+$/.test(name))) {
    throw new RangeError("CudaParameter.struct: a struct has fields, whose names are no numbers")
  }
  if (!Number.isInteger(Math.log2(align)) || align < 1) {
    throw new RangeError(`CudaParameter.struct: an alignment of ${align} is no power of two`)
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
 * An array by value, as the only field of a struct: arguments are arrays or typed arrays of that length. Throws a
 * `RangeError` for a length that is not a whole number above 0.
 *
 * @category aggregates
 * @since 0.1.0
 */
export const array = <Element extends ParameterKind>(element: Element, length: number): ArrayKind<Element> => {
  if (!Number.isSafeInteger(length) || length < 1) {
    throw new RangeError(`CudaParameter.array: a length of ${length}; expected a whole number above 0`)
  }
  return Object.freeze({ kind: "array", element, length, size: element.size * length, align: element.align })
}
