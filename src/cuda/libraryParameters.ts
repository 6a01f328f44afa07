/**
 * The parameters of C functions of libraries, beyond those that kernels have. No Effect here.
 *
 * @since 0.1.0
 */
import type { PointerKind, ScalarKind, ScalarName } from "./parameters.ts"

/** How C passes a handle: as a pointer, or as an `int`. */
export type HandleType = "pointer" | "i32"

/** A handle of the library. */
export interface HandleKind<out Name extends string = string, out Nullable extends boolean = boolean> {
  readonly kind: "handle"
  readonly of: Name
  readonly as: HandleType
  readonly nullable: Nullable
}

/** Where a function stores the handle that it creates. */
export interface NewHandleKind<out Name extends string = string> {
  readonly kind: "newHandle"
  readonly of: Name
  readonly as: HandleType
}

/** The stream on which a function enqueues work. */
export interface StreamKind {
  readonly kind: "stream"
}

/** Memory of the host that a function reads or writes before it returns. */
export interface HostKind<out Nullable extends boolean = boolean> {
  readonly kind: "host"
  readonly access: "read" | "write"
  readonly nullable: Nullable
}

/** A struct by value. */
export interface BytesKind {
  readonly kind: "bytes"
  readonly size: number
}

/** A string that ends in a zero byte. */
export interface TextKind<out Nullable extends boolean = boolean> {
  readonly kind: "text"
  readonly nullable: Nullable
}

/** A kind of parameter. */
export type LibraryParameter =
  | ScalarKind
  | PointerKind
  | HandleKind
  | NewHandleKind
  | StreamKind
  | HostKind
  | BytesKind
  | TextKind

/** What a function returns. */
export type LibraryReturn = "status" | "void" | ScalarKind | TextKind

/** The koffi types of numbers. 16-bit floats are passed as their bits. */
export const scalarTypes: { readonly [Name in ScalarName]: string } = {
  i8: "int8_t",
  u8: "uint8_t",
  i16: "int16_t",
  u16: "uint16_t",
  i32: "int32_t",
  u32: "uint32_t",
  i64: "int64_t",
  u64: "uint64_t",
  f16: "uint16_t",
  bf16: "uint16_t",
  f32: "float",
  f64: "double",
  bool: "bool"
}
