/* Where a guest begins, where its interrupts arrive, and where its other CPUs come up.
 *
 * PVH enters here in 32-bit protected mode without paging, interrupts off, EBX = the start info; there is no stack
 * and the descriptor tables may lie anywhere, so the first thing is to have our own.
 */
	.code32
	.section .note.pvh, "a", @note
	.align 4
	.long 4, 4, 18                  /* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.long _start

	.section .text.start, "ax"
	.globl _start
_start:
	cli
	lgdt gdt_pointer
	ljmp $8, $1f
1:	mov $16, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $boot_stack_top, %esp
	push %ebx
	call guest_start
2:	hlt
	jmp 2b

	.text
/* Vectors 0 to 47, four bytes of table each; rt.c builds the IDT from it. */
	.altmacro
	.macro stub vector
stub_\vector:
	.if (\vector == 8) || ((\vector >= 10) && (\vector <= 14)) || (\vector == 17)
	.else
	push $0                         /* an error code where the CPU pushes none */
	.endif
	push $\vector
	jmp common
	.section .rodata
	.long stub_\vector
	.text
	.endm

	.section .rodata
	.align 4
	.globl stubs
stubs:
	.text
	.set i, 0
	.rept 48
	stub %i
	.set i, i + 1
	.endr

common:
	pushal
	push %esp
	cld
	call guest_trap
	add $4, %esp
	popal
	add $8, %esp
	/* iret, spelt out: KVM's emulator, which is all that some back ends have, knows it in real mode only. The flags come
	 * back without IF, and the instruction after sti is not interrupted yet. */
	pushl 8(%esp)
	andl $~0x200, (%esp)
	popfl
	sti
	lret $4

/* Copied to a page below 1 MiB; an application CPU starts there in real mode, after INIT and start-up IPI. */
	.code16
	.globl ap_begin, ap_end
ap_begin:
	cli
	mov %cs, %ax
	mov %ax, %ds
	lgdtl ap_gdt_pointer - ap_begin
	mov %cr0, %eax
	or $1, %al
	mov %eax, %cr0
	ljmpl $8, $ap_protected
	.align 4
ap_gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt
ap_end:

	.code32
ap_protected:
	mov $16, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov ap_stack, %esp
	call guest_ap
3:	cli
	hlt
	jmp 3b

	.section .data
	.align 8
gdt:	.quad 0
	.quad 0x00cf9b000000ffff        /* code, flat, 32 bits */
	.quad 0x00cf93000000ffff        /* data, flat */
gdt_end:
gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt

	.section .bss
	.align 16
	.skip 16384
boot_stack_top:
